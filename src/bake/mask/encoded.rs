//! The forms of a secret in Base64 and hexadecimal, as a build may print it.
//!
//! Base64 of a longer text has the secret in one of three alignments. A form has only the characters that the secret alone decides,
//! so it is found whatever stands around it. Tools break long Base64 and hexadecimal into lines of known widths.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::hex;

/// The forms of a longer secret would take too much memory.
pub(super) const MAX_SECRET: usize = 16 << 10;

/// A shorter form appears in too much that is not secret.
const MIN_FORM: usize = 8;

/// The lines of `openssl` and PEM, and of `base64` and MIME.
const BASE64_WIDTHS: [usize; 2] = [64, 76];

/// The lines of `xxd -p`.
const HEX_WIDTHS: [usize; 1] = [60];

/// Every form of a secret; none for a secret that is too long.
pub(super) fn forms(secret: &[u8]) -> Vec<String> {
    let secret = secret.trim_ascii();
    if secret.is_empty() || secret.len() > MAX_SECRET {
        return Vec::new();
    }
    let base64 = base64_forms(secret);
    // RFC 4648 §5.
    let url_safe: Vec<String> = base64.iter().map(|form| form.replace('+', "-").replace('/', "_")).collect();
    let hex = hex::encode(secret);
    let hex_forms = [hex.to_uppercase(), hex].into_iter().flat_map(|form| wrapped(form, &HEX_WIDTHS));
    let forms = base64.into_iter().chain(url_safe).chain(hex_forms);
    forms.filter(|form| form.len() >= MIN_FORM).collect()
}

fn base64_forms(secret: &[u8]) -> Vec<String> {
    // The secret alone, and as `echo` prints it.
    let mut forms = vec![BASE64_STANDARD.encode(secret), BASE64_STANDARD.encode([secret, b"\n"].concat())];
    for n_before in 0..3 {
        let text = BASE64_STANDARD.encode([&b"\0\0"[..n_before], secret].concat());
        let from = (n_before * 8_usize).div_ceil(6);
        let to = (n_before + secret.len()) * 8 / 6;
        let form = text[from..to.max(from)].to_owned();
        // Only a text that begins with the secret has lines that begin with it.
        forms.extend(if n_before == 0 { wrapped(form, &BASE64_WIDTHS) } else { vec![form] });
    }
    forms
}

/// A form, and its lines of each width.
fn wrapped(form: String, widths: &[usize]) -> Vec<String> {
    let long = widths.iter().filter(|width| form.len() > **width);
    let lines = long.flat_map(|width| form.as_bytes().chunks(*width));
    let lines: Vec<String> = lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    [vec![form], lines].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn base64_of_any_text_around_a_secret_has_one_of_its_forms(
            before in prop::collection::vec(any::<u8>(), 0..9),
            secret in prop::collection::vec(b'!'..=b'~', 8..40),
            after in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let text = BASE64_STANDARD.encode([before, secret.clone(), after].concat());
            let forms = forms(&secret);
            prop_assert!(forms.iter().any(|form| text.contains(form)), "{text} {forms:?}");
            let url_safe = text.replace('+', "-").replace('/', "_");
            prop_assert!(forms.iter().any(|form| url_safe.contains(form)), "{url_safe} {forms:?}");
        }
    }

    #[test]
    fn every_line_of_a_long_secret_is_a_form() {
        let secret: Vec<u8> = (0..1700_u32).map(|n| b'!' + (n * n % 90) as u8).collect();
        let forms = forms(&secret);
        for (text, width) in
            [(BASE64_STANDARD.encode(&secret), 76), (BASE64_STANDARD.encode(&secret), 64), (hex::encode(&secret), 60)]
        {
            let lines: Vec<&str> =
                text.as_bytes().chunks(width).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
            for line in lines {
                assert!(forms.iter().any(|form| line.contains(form)), "{width}: {line}");
            }
        }
        assert!(super::forms(&vec![b'x'; MAX_SECRET + 1]).is_empty());
    }
}
