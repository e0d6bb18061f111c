//! A port that an attack would ring.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A port that counts who comes, and tells everybody the same.
pub struct Bell {
    pub port: u16,
    rung: Arc<AtomicUsize>,
}

impl Bell {
    pub fn answering(words: String) -> Self {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let bell = Self { port: door.local_addr().unwrap().port(), rung: Arc::default() };
        let rung = bell.rung.clone();
        std::thread::spawn(move || {
            for mut visitor in door.incoming().flatten() {
                rung.fetch_add(1, Ordering::SeqCst);
                // A visitor that has not said all before it hears the answer may miss it.
                let _ = visitor.read(&mut [0; 4096]).and_then(|_| visitor.write_all(words.as_bytes()));
            }
        });
        bell
    }

    pub fn hanging_up() -> Self {
        Self::answering(String::new())
    }

    pub fn rung(&self) -> usize {
        self.rung.load(Ordering::SeqCst)
    }
}
