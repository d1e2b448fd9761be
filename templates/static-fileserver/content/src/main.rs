//! Serves files. A CGI program: the request arrives in environment variables, the
//! answer leaves on standard output. It sees the folder that the manifest names in
//! `files` as `/`, and nothing else.
//!
//! `FALLBACK_PATH` and `CUSTOM_404_PATH`, set in `environment` of the manifest, name
//! files that are sent where there is none.

use std::{
    env, fs,
    hash::{DefaultHasher, Hasher as _},
    io::{self, Write as _},
    path::{Component, Path, PathBuf},
};

/// What a file's content is by the end of its name.
const CONTENT_TYPES: [(&str, &str); 22] = [
    ("avif", "image/avif"),
    ("css", "text/css; charset=utf-8"),
    ("gif", "image/gif"),
    ("htm", "text/html; charset=utf-8"),
    ("html", "text/html; charset=utf-8"),
    ("ico", "image/x-icon"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("js", "text/javascript; charset=utf-8"),
    ("json", "application/json"),
    ("map", "application/json"),
    ("md", "text/markdown; charset=utf-8"),
    ("mjs", "text/javascript; charset=utf-8"),
    ("mp4", "video/mp4"),
    ("pdf", "application/pdf"),
    ("png", "image/png"),
    ("svg", "image/svg+xml"),
    ("txt", "text/plain; charset=utf-8"),
    ("wasm", "application/wasm"),
    ("webp", "image/webp"),
    ("woff2", "font/woff2"),
    ("xml", "application/xml"),
];

fn main() -> io::Result<()> {
    let method = env::var("REQUEST_METHOD").unwrap_or_default();
    if method != "GET" && method != "HEAD" {
        return answer(405, "text/plain", None, b"only GET and HEAD\n", true);
    }
    let with_body = method == "GET";
    let path = env::var("PATH_INFO").unwrap_or_default();
    if let Some((path, content)) = find(&path).or_else(|| named_by("FALLBACK_PATH")) {
        return send(200, &path, &content, with_body);
    }
    match named_by("CUSTOM_404_PATH") {
        Some((path, content)) => send(404, &path, &content, with_body),
        None => answer(404, "text/plain", None, b"not found\n", with_body),
    }
}

/// The file that a path means, or the first page of a folder.
fn find(path: &str) -> Option<(PathBuf, Vec<u8>)> {
    let path = PathBuf::from(decode(path)?.trim_start_matches('/'));
    if path.components().any(|part| !matches!(part, Component::Normal(_))) {
        return None;
    }
    let path = Path::new("/").join(path);
    let path = if path.is_dir() { path.join("index.html") } else { path };
    Some((path.clone(), fs::read(&path).ok()?))
}

/// The file that an environment variable names.
fn named_by(variable: &str) -> Option<(PathBuf, Vec<u8>)> {
    find(&env::var(variable).ok()?)
}

/// Replaces `%20` and the like.
fn decode(path: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            decoded.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

/// Sends a file, unless the client has it already.
fn send(status: u16, path: &Path, content: &[u8], with_body: bool) -> io::Result<()> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let content_type = CONTENT_TYPES
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(extension))
        .map_or("application/octet-stream", |(_, content_type)| content_type);
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    let tag = format!("\"{:016x}\"", hasher.finish());
    let known = env::var("HTTP_IF_NONE_MATCH").unwrap_or_default();
    if status == 200 && known.split(',').any(|known| known.trim() == tag) {
        return answer(304, content_type, Some(&tag), b"", false);
    }
    answer(status, content_type, Some(&tag), content, with_body)
}

fn answer(status: u16, content_type: &str, tag: Option<&str>, body: &[u8], with_body: bool) -> io::Result<()> {
    let mut output = io::stdout().lock();
    write!(output, "Status: {status}\nContent-Type: {content_type}\n")?;
    if let Some(tag) = tag {
        write!(output, "ETag: {tag}\nCache-Control: no-cache\n")?;
    }
    output.write_all(b"\n")?;
    if with_body {
        output.write_all(body)?;
    }
    output.flush()
}
