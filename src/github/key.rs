//! The App's private key, in the forms in which people keep it.
//!
//! GitHub gives out a PEM file (PKCS #1). In settings and secrets it often becomes something else: `\n` in place of line feeds, spaces in
//! place of line feeds, quotes around it, Base64 of the file, the Base64 body alone, DER, or PKCS #8. All of these have one meaning.
//! Follows RFC 7468 (PEM), RFC 8017 appendix A.1.2 (PKCS #1) and RFC 5958 (PKCS #8).

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jsonwebtoken::EncodingKey;

use crate::secret::{Secret, SecretBytes};

/// The labels of PEM blocks that may have an RSA key.
const PKCS1: &str = "RSA PRIVATE KEY";
const PKCS8: &str = "PRIVATE KEY";

/// DER tags (X.690).
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;

/// Base64 of a file has the file inside; not more than this is unpacked.
const MAX_WRAPS: usize = 2;

/// A key that cannot be used. No message has a part of the key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A passphrase protects it.
    #[error("it is encrypted; write it without a passphrase: openssl rsa -in KEY.pem -out PLAIN.pem")]
    Encrypted,
    /// A PEM file without a private key.
    #[error("it has a {0}, and no private key; download the App's private key from GitHub")]
    OtherBlock(String),
    /// A private key in a form or of an algorithm that GitHub does not give out.
    #[error("it has the label {0:?}; GitHub Apps have RSA keys")]
    OtherKind(String),
    /// Nothing of a key can be found in it.
    #[error("it is neither PEM nor DER, nor Base64 of either")]
    NoKey,
    /// The form is right, and the content is not.
    #[error("it is not a whole RSA key: {0}")]
    Broken(#[from] jsonwebtoken::errors::Error),
}

/// Reads a private key in any of its forms.
pub(super) fn parse(bytes: &[u8]) -> Result<EncodingKey, KeyError> {
    let pem = to_pem(bytes, MAX_WRAPS)?;
    Ok(EncodingKey::from_rsa_pem(pem.expose().as_bytes())?)
}

/// The key as PEM.
fn to_pem(bytes: &[u8], wraps: usize) -> Result<Secret, KeyError> {
    if let Some(label) = label_of_der(bytes) {
        return Ok(pem(label, &BASE64_STANDARD.encode(bytes)));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| KeyError::NoKey)?;
    let text = Secret::new(text.replace("\\r", "").replace("\\n", "\n"));
    let text = text.expose().trim().trim_matches(['"', '\'']);
    if text.contains("-----BEGIN") {
        return private_block(text);
    }
    let base64 = Secret::new(text.split_whitespace().collect::<String>());
    let wraps = wraps.checked_sub(1).ok_or(KeyError::NoKey)?;
    let decoded = SecretBytes::new(BASE64_STANDARD.decode(base64.expose()).map_err(|_| KeyError::NoKey)?);
    to_pem(decoded.expose(), wraps)
}

/// The private key among the blocks of a PEM file. Others, such as certificates, are passed over.
fn private_block(text: &str) -> Result<Secret, KeyError> {
    let mut other = None;
    for block in text.split("-----BEGIN ").skip(1) {
        let Some((label, rest)) = block.split_once("-----") else { continue };
        let body = rest.split("-----END").next().unwrap_or(rest);
        match label {
            PKCS1 | PKCS8 if body.contains("ENCRYPTED") => return Err(KeyError::Encrypted),
            PKCS1 | PKCS8 => return Ok(pem(label, &body.split_whitespace().collect::<String>())),
            "ENCRYPTED PRIVATE KEY" => return Err(KeyError::Encrypted),
            label if label.ends_with("PRIVATE KEY") => return Err(KeyError::OtherKind(label.to_owned())),
            label => other = other.or(Some(label.to_owned())),
        }
    }
    Err(other.map_or(KeyError::NoKey, KeyError::OtherBlock))
}

/// What DER has: PKCS #1 begins with a version and an integer, PKCS #8 with a version and the algorithm.
fn label_of_der(bytes: &[u8]) -> Option<&'static str> {
    let (tag, fields, _) = element(bytes)?;
    let (version, _, rest) = element(fields)?;
    let (next, _, _) = element(rest)?;
    match (tag, version, next) {
        (SEQUENCE, INTEGER, INTEGER) => Some(PKCS1),
        (SEQUENCE, INTEGER, SEQUENCE) => Some(PKCS8),
        _ => None,
    }
}

/// The tag and the content of the first DER element, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = bytes.split_first_chunk()?;
    let (n_bytes, rest) = match usize::from(length) {
        short @ 0..0x80 => (short, rest),
        long => {
            let (digits, rest) = rest.split_at_checked(long & 0x7f).filter(|(digits, _)| digits.len() <= 4)?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
    };
    let (content, rest) = rest.split_at_checked(n_bytes)?;
    Some((tag, content, rest))
}

fn pem(label: &str, base64: &str) -> Secret {
    let lines: Vec<&str> = base64.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    Secret::new(format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn der(pem: &str) -> Vec<u8> {
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        BASE64_STANDARD.decode(body).expect("Base64")
    }

    #[test]
    fn a_key_is_read_in_every_form_in_which_people_keep_it() {
        let app = world::App::generate(1);
        let (key, pkcs8) = (app.private_key_pkcs1_pem(), app.private_key_pem());
        let body = key.lines().filter(|line| !line.starts_with('-')).collect::<Vec<_>>().join("\n");
        let certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        let forms: Vec<(&str, Vec<u8>)> = vec![
            ("unchanged", key.clone().into()),
            ("with CRLF", key.replace('\n', "\r\n").into()),
            (r"with \n", key.replace('\n', r"\n").into()),
            (r"with \r\n", key.replace('\n', r"\r\n").into()),
            ("in quotes", format!("\"{}\"", key.trim().replace('\n', r"\n")).into()),
            ("on one line", key.replace('\n', " ").into()),
            ("Base64 of the file", BASE64_STANDARD.encode(&key).into()),
            (
                "Base64 of the file, wrapped",
                BASE64_STANDARD.encode(&key).as_bytes().chunks(76).collect::<Vec<_>>().join(&b"\n"[..]),
            ),
            ("the body alone", body.into()),
            ("behind a certificate", format!("{certificate}{key}").into()),
            ("DER", der(&key)),
            ("PKCS #8", pkcs8.clone().into()),
            ("PKCS #8 on one line", pkcs8.replace('\n', " ").into()),
            ("DER of PKCS #8", der(&pkcs8)),
            ("Base64 of Base64 of the file", BASE64_STANDARD.encode(BASE64_STANDARD.encode(&key)).into()),
        ];
        for (form, bytes) in forms {
            if let Err(error) = parse(&bytes) {
                panic!("{form}: {error}");
            }
        }
    }

    #[test]
    fn what_is_no_key_is_refused_with_what_to_do() {
        let table = [
            ("hunter2", "it is neither PEM nor DER, nor Base64 of either"),
            ("", "it is neither PEM nor DER, nor Base64 of either"),
            ("-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----", "it has a PUBLIC KEY, and no private key"),
            (
                "-----BEGIN EC PRIVATE KEY-----\nMIIB\n-----END EC PRIVATE KEY-----",
                "it has the label \"EC PRIVATE KEY\"; GitHub Apps have RSA",
            ),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----", "it is encrypted"),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIB\n-----END RSA PRIVATE KEY-----",
                "it is encrypted",
            ),
            ("-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----", "it is not a whole RSA key"),
            ("-----BEGIN RSA PRIVATE KEY", "it is neither PEM nor DER"),
        ];
        for (text, expected) in table {
            let Err(error) = parse(text.as_bytes()) else { panic!("{text} is a key") };
            let error = error.to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
            assert!(!error.contains("MIIB"), "{error}");
        }
    }
}
