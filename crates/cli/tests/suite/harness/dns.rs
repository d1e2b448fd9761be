//! A name server that knows what a test tells it.

use std::{
    collections::HashMap,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
    thread,
};

/// Answers questions about texts that it was told of, and says of all else that it is not.
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    texts: Arc<Mutex<HashMap<String, String>>>,
}

impl NameServer {
    pub(crate) fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let texts = Arc::new(Mutex::new(HashMap::<String, String>::new()));
        let known = texts.clone();
        // Ends with the process.
        thread::spawn(move || {
            let mut bytes = [0; 1_024];
            while let Ok((_, client)) = socket.recv_from(&mut bytes) {
                let (mut name, mut position) = (Vec::new(), 12);
                while bytes[position] != 0 {
                    let end = position + 1 + usize::from(bytes[position]);
                    name.push(String::from_utf8_lossy(&bytes[position + 1..end]).to_lowercase());
                    position = end;
                }
                let kind = bytes[position + 2];
                let mut answer = bytes[..position + 5].to_vec();
                // It is an answer, and the question is all that follows.
                answer[2] |= 0x80;
                answer[8..12].fill(0);
                let text = known.lock().unwrap().get(&name.join(".")).cloned();
                match text.filter(|_| kind == 16) {
                    Some(text) => {
                        answer[7] = 1;
                        let length = u8::try_from(text.len()).unwrap();
                        answer.extend_from_slice(&[
                            0xc0,
                            12,
                            0,
                            16,
                            0,
                            1,
                            0,
                            0,
                            0,
                            60,
                            0,
                            length + 1,
                            length,
                        ]);
                        answer.extend_from_slice(text.as_bytes());
                    }
                    None => answer[3] |= 3,
                }
                drop(socket.send_to(&answer, client));
            }
        });
        Self { address, texts }
    }

    pub(crate) fn set(&self, name: &str, text: &str) {
        self.texts.lock().unwrap().insert(name.to_lowercase(), text.to_owned());
    }
}
