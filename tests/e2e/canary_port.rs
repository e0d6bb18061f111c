//! A port that an attack would connect to.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A port that counts its connections and gives each the same answer.
pub struct CanaryPort {
    pub port: u16,
    n_connections: Arc<AtomicUsize>,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl CanaryPort {
    pub fn answering(words: String) -> Self {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let canary_port =
            Self { port: door.local_addr().unwrap().port(), n_connections: Arc::default(), heard: Arc::default() };
        let (n_connections, heard) = (canary_port.n_connections.clone(), canary_port.heard.clone());
        std::thread::spawn(move || {
            for mut visitor in door.incoming().flatten() {
                n_connections.fetch_add(1, Ordering::SeqCst);
                // In its own thread, because a client that waits for the first word must not block the others.
                let _ = visitor.set_read_timeout(Some(Duration::from_secs(1)));
                let mut words_of_theirs = [0; 4096];
                // A client that receives the answer before it has sent everything may miss it.
                let n_bytes = visitor.read(&mut words_of_theirs).unwrap_or(0);
                heard.lock().unwrap().extend_from_slice(&words_of_theirs[..n_bytes]);
                let _ = visitor.write_all(words.as_bytes());
            }
        });
        canary_port
    }

    /// A port that requires a password.
    pub fn asking_for_a_password() -> Self {
        Self::refusing("Basic realm=\"x\"")
    }

    /// A registry that sends its clients to this port of the machine for a token.
    pub fn sending_to(port: u16) -> Self {
        Self::refusing(&format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"x\""))
    }

    pub fn hanging_up() -> Self {
        Self::answering(String::new())
    }

    fn refusing(challenge: &str) -> Self {
        Self::answering(format!(
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ))
    }

    pub fn n_connections(&self) -> usize {
        self.n_connections.load(Ordering::SeqCst)
    }

    /// The first bytes of every connection.
    pub fn heard(&self) -> Vec<u8> {
        self.heard.lock().unwrap().clone()
    }
}
