//! The line between two nodes during a migration: words as JSON, and pieces of modules as they are.
//!
//! ```text
//! 0 | length (u32, little-endian) | JSON         1 | length | bytes of the module that was announced
//! ```

use super::MAX_WORD_BYTES;
use super::net::{Duplex, NetError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

const WORD: u8 = 0;
const PIECE: u8 = 1;
/// Bytes of a piece.
const PIECE_BYTES: usize = 256 << 10;
/// The other node has to take, or send, something within this time while it is awaited.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One end's ears.
pub struct Ears(ReadHalf<Box<dyn Duplex>>);
/// One end's mouth.
pub struct Mouth(WriteHalf<Box<dyn Duplex>>);

/// Both halves of a line.
#[must_use]
pub fn line(stream: Box<dyn Duplex>) -> (Ears, Mouth) {
    let (ears, mouth) = tokio::io::split(stream);
    (Ears(ears), Mouth(mouth))
}

fn broke(error: impl std::fmt::Display) -> NetError {
    NetError(format!("the line to the other node broke: {error}; look at both nodes' logs"))
}

fn strange(what: &str) -> NetError {
    NetError(format!("the other node sent {what}; update the older node"))
}

impl Ears {
    /// Reads all that the other node says from here on, in a task of its own, until the line breaks: that is the last thing heard.
    pub fn listen<T: DeserializeOwned + Send + 'static>(mut self) -> mpsc::Receiver<Result<T, NetError>> {
        /// Words that wait to be dealt with.
        const MAX_WORDS: usize = 16;
        let (tell, words) = mpsc::channel(MAX_WORDS);
        tokio::spawn(async move {
            loop {
                let word = self.hear().await;
                let is_last = word.is_err();
                if tell.send(word).await.is_err() || is_last {
                    return;
                }
            }
        });
        words
    }

    async fn head(&mut self) -> Result<(u8, usize), NetError> {
        let kind = self.0.read_u8().await.map_err(broke)?;
        let length = self.0.read_u32_le().await.map_err(broke)? as usize;
        Ok((kind, length))
    }

    /// The next word. Safe to be given up only before its first byte: read it in a task of its own.
    ///
    /// # Errors
    /// [`NetError`] if the line breaks, or what comes is no word.
    pub async fn hear<T: DeserializeOwned>(&mut self) -> Result<T, NetError> {
        let (kind, length) = self.head().await?;
        if kind != WORD || length > MAX_WORD_BYTES {
            return Err(strange("something else than a word"));
        }
        // As much memory as really comes.
        let mut text = Vec::new();
        (&mut self.0).take(length as u64).read_to_end(&mut text).await.map_err(broke)?;
        if text.len() < length {
            return Err(broke("it ended"));
        }
        serde_json::from_slice(&text)
            .map_err(|error| strange(&format!("a word that is not understood ({error})")))
    }

    /// The next word, in time.
    ///
    /// # Errors
    /// As [`hear`](Self::hear), or if it does not come.
    pub async fn hear_soon<T: DeserializeOwned>(&mut self) -> Result<T, NetError> {
        tokio::time::timeout(PATIENCE, self.hear()).await.unwrap_or_else(|_| Err(broke("no answer in time")))
    }

    /// A module of so many bytes.
    ///
    /// # Errors
    /// [`NetError`] if the line breaks, or something else comes.
    pub async fn module(&mut self, bytes: usize) -> Result<Vec<u8>, NetError> {
        let mut module = Vec::new();
        while module.len() < bytes {
            let piece = async {
                let (kind, length) = self.head().await?;
                if kind != PIECE || length == 0 || length > PIECE_BYTES || module.len() + length > bytes {
                    return Err(strange("something else than a piece of a module"));
                }
                let start = module.len();
                module.resize(start + length, 0);
                self.0.read_exact(&mut module[start..]).await.map_err(broke)
            };
            tokio::time::timeout(PATIENCE, piece).await.map_err(|_| broke("no piece in time"))??;
        }
        Ok(module)
    }
}

impl Mouth {
    async fn send(&mut self, kind: u8, body: &[u8]) -> Result<(), NetError> {
        let mut frame = Vec::with_capacity(body.len() + 5);
        frame.push(kind);
        frame.extend_from_slice(&u32::try_from(body.len()).map_err(broke)?.to_le_bytes());
        frame.extend_from_slice(body);
        let sent = async {
            self.0.write_all(&frame).await?;
            self.0.flush().await
        };
        let sent = tokio::time::timeout(PATIENCE, sent).await.map_err(|_| broke("it takes nothing"))?;
        sent.map_err(broke)
    }

    /// Says a word.
    ///
    /// # Errors
    /// [`NetError`] if the line breaks.
    pub async fn say(&mut self, word: &impl Serialize) -> Result<(), NetError> {
        let text = serde_json::to_vec(word).map_err(broke)?;
        if text.len() > MAX_WORD_BYTES {
            return Err(NetError("the tenant's records are too long for a migration; remove actions".into()));
        }
        self.send(WORD, &text).await
    }

    /// Says that nothing more is said: the other end hears that at once, though this one still listens.
    pub async fn close(mut self) {
        let _ = tokio::time::timeout(PATIENCE, self.0.shutdown()).await;
    }

    /// Sends a module.
    ///
    /// # Errors
    /// [`NetError`] if the line breaks.
    pub async fn send_module(&mut self, module: &[u8]) -> Result<(), NetError> {
        for piece in module.chunks(PIECE_BYTES) {
            self.send(PIECE, piece).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn words_and_modules_arrive_and_nothing_else_is_taken() {
        let (one, other) = tokio::io::duplex(1 << 16);
        let ((mut ears, _mouth), (_ears, mut mouth)) = (line(Box::new(one)), line(Box::new(other)));
        let module: Vec<u8> = (0..700_000u32).map(|n| n as u8).collect();
        let sent = module.clone();
        tokio::spawn(async move {
            mouth.say(&"hello").await.unwrap();
            mouth.send_module(&sent).await.unwrap();
            mouth.say(&7).await.unwrap();
            mouth.send(PIECE, b"x").await.unwrap();
        });
        assert_eq!(ears.hear_soon::<String>().await.unwrap(), "hello");
        assert_eq!(ears.module(module.len()).await.unwrap(), module);
        assert!(ears.hear_soon::<String>().await.unwrap_err().0.contains("not understood"));
        assert!(ears.hear_soon::<String>().await.unwrap_err().0.contains("something else"));
        assert!(ears.hear_soon::<String>().await.unwrap_err().0.contains("broke"));
    }
}
