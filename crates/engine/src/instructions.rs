//! Finds instructions without reading those before them.
//!
//! To read all instructions of a module takes twenty times as long as to look for what a
//! few begin with. What is found may be a part of another instruction, so who finds
//! something has to read; but hardly a function has anything.

use wasmparser::BinaryReader;

/// Instructions on whole memories and tables begin with this and a number.
pub(crate) const PREFIX: u8 = 0xfc;

/// The numbers after each byte of a function that could be this opcode.
pub(crate) fn numbers_after(body: &[u8], opcode: u8) -> impl Iterator<Item = u32> {
    // In as many bytes as it likes. What is no number is no instruction either.
    memchr::memchr_iter(opcode, body)
        .filter_map(|place| BinaryReader::new(&body[place + 1..], 0).read_var_u32().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_may_be_longer_than_it_has_to_be() {
        let numbers = |body: &[u8]| numbers_after(body, 0x26).collect::<Vec<_>>();
        assert_eq!(numbers(&[0x26, 0x05]), [5]);
        assert_eq!(numbers(&[0x26, 0x85, 0x00, 0x26, 0x91, 0x80, 0x00]), [5, 17]);
        assert_eq!(numbers(&[0x26, 0x26, 0x91, 0x01]), [0x26, 0x91]);
        assert_eq!(numbers(&[0x26]), [0_u32; 0]);
        assert_eq!(numbers(&[0x26, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), [0_u32; 0]);
    }
}
