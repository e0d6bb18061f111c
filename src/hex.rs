//! Lower-case hexadecimal digits, of given bytes and of random ones.

use std::fmt::Write as _;

/// Two digits for each byte.
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    let bytes = bytes.as_ref();
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(digits, "{byte:02x}").expect("a string takes every write");
    }
    digits
}

/// `N` random bytes: jids (12 bytes), and names that no other process uses.
pub fn random<const N: usize>() -> String {
    encode(rand::random::<[u8; N]>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_two_digits() {
        assert_eq!(encode([0x00, 0x0a, 0xff]), "000aff");
        assert_eq!((random::<12>().len(), random::<0>().len()), (24, 0));
    }
}
