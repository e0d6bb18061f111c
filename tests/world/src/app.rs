//! A GitHub App's identity: its ids, its RSA key pair, and the verification of its JWTs.

use std::sync::LazyLock;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;

/// One App. Its private key exists in this process only.
pub struct App {
    /// The numeric App id.
    pub id: u64,
    /// The client id, which newer Apps sign with.
    pub client_id: String,
    pkcs8: Vec<u8>,
    public_key: DecodingKey,
}

impl App {
    /// An App with a fresh 2048-bit key.
    pub fn generate(id: u64) -> App {
        App::new(id, &KeyPair::generate(KeySize::Rsa2048).unwrap())
    }

    /// An App with one key per process, because generating a key takes half a second in a debug build.
    pub(crate) fn of_this_process(id: u64) -> App {
        static PAIR: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate(KeySize::Rsa2048).unwrap());
        App::new(id, &PAIR)
    }

    fn new(id: u64, pair: &KeyPair) -> App {
        App {
            id,
            client_id: format!("Iv23li{id:014}"),
            pkcs8: pair.as_der().unwrap().as_ref().to_vec(),
            public_key: DecodingKey::from_rsa_der(pair.public_key().as_ref()),
        }
    }

    /// The private key as `BEGIN PRIVATE KEY` (PKCS#8).
    pub fn private_key_pem(&self) -> String {
        pem("PRIVATE KEY", &self.pkcs8)
    }

    /// The private key as `BEGIN RSA PRIVATE KEY` (PKCS#1), the form that GitHub provides.
    pub fn private_key_pkcs1_pem(&self) -> String {
        // At this key size, PKCS#8 of an RSA key is a fixed frame of 26 bytes around PKCS#1.
        let (frame, pkcs1) = self.pkcs8.split_at(26);
        assert_eq!((frame[22], pkcs1[0]), (0x04, 0x30), "an octet string that holds a sequence");
        pem("RSA PRIVATE KEY", pkcs1)
    }

    /// Verifies the JWT as GitHub does at `now_s`; the error is GitHub's message for the 401.
    pub(crate) fn verify(&self, jwt: &str, now_s: i64) -> Result<(), &'static str> {
        let mut validation = Validation::new(Algorithm::RS256);
        // `judge_times` checks the times, by GitHub's rules and the stand-in's own clock.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.set_required_spec_claims::<&str>(&[]);
        let claims = jsonwebtoken::decode::<Value>(jwt, &self.public_key, &validation)
            .map_err(|_| "A JSON web token could not be decoded")?
            .claims;
        if !self.is_issuer(&claims["iss"]) {
            // GitHub looks the key up by the issuer, so a foreign issuer looks like a bad signature.
            return Err("A JSON web token could not be decoded");
        }
        judge_times(&claims, now_s)
    }

    fn is_issuer(&self, iss: &Value) -> bool {
        match iss {
            Value::Number(id) => id.as_u64() == Some(self.id),
            Value::String(iss) => *iss == self.id.to_string() || *iss == self.client_id,
            _ => false,
        }
    }
}

fn judge_times(claims: &Value, now_s: i64) -> Result<(), &'static str> {
    let Some(iat_s) = claims["iat"].as_i64().filter(|iat_s| *iat_s <= now_s) else {
        return Err("'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued");
    };
    let Some(exp_s) = claims["exp"].as_i64().filter(|exp_s| *exp_s > now_s) else {
        return Err(
            "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires",
        );
    };
    if exp_s - iat_s > 600 {
        return Err("'Expiration time' claim ('exp') is too far in the future");
    }
    Ok(())
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
