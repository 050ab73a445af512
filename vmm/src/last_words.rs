//! [`LastWords`]: the end of a program is told after everything else it has said.

use nacre_abi::message::Header;

/// Last words that wait at most; more are handed on at once. Only a guest that lies has so many.
const MAX_LAST_WORDS: usize = 1024;
/// Bytes of them at most, for a guest that fills each message.
const MAX_LAST_BYTES: usize = 1 << 20;

/// Last words of programs, which may have overtaken what the programs said over other rings: a task changes its vCPU. They wait
/// until each of the other rings was seen empty once.
#[derive(Default)]
pub(crate) struct LastWords {
    waiting: Vec<(Header, Vec<u8>)>,
    /// For each, the rings that may still have something older.
    unread: Vec<u64>,
}

impl LastWords {
    /// Keeps a message from `ring` of so many; false if there are too many.
    pub(crate) fn keep(&mut self, header: Header, body: &[u8], ring: usize, rings: usize) -> bool {
        let bytes: usize = self.waiting.iter().map(|(_, body)| body.len()).sum();
        if self.waiting.len() >= MAX_LAST_WORDS || bytes + body.len() > MAX_LAST_BYTES {
            return false;
        }
        let all = u64::MAX >> (64 - rings.clamp(1, 64));
        self.waiting.push((header, body.to_vec()));
        self.unread.push(all & !(1 << ring));
        true
    }

    /// A ring was seen empty.
    pub(crate) fn seen_empty(&mut self, ring: usize) {
        self.unread.iter_mut().for_each(|rings| *rings &= !(1 << ring));
    }

    /// Takes out one that nothing can follow any more.
    pub(crate) fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        let index = self.unread.iter().position(|rings| *rings == 0)?;
        self.unread.remove(index);
        Some(self.waiting.remove(index))
    }

    /// Whether some wait.
    pub(crate) fn any(&self) -> bool {
        !self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_abi::message::Kind;

    fn exited(program: u32) -> Header {
        Header::new(Kind::ProgramExited, program)
    }

    #[test]
    fn who_ended_is_told_when_the_other_rings_were_empty_once() {
        let mut words = LastWords::default();
        assert!(words.keep(exited(1), b"one", 0, 3) && words.keep(exited(2), b"", 2, 3));
        words.seen_empty(2);
        assert!(words.next().is_none());
        words.seen_empty(1);
        assert_eq!(words.next().map(|(header, body)| (header.program, body)), Some((1, b"one".to_vec())));
        // The other one came over the ring that was just seen empty, but not the first.
        assert!(words.next().is_none() && words.any());
        words.seen_empty(0);
        assert_eq!(words.next().map(|(header, _)| header.program), Some(2));
        assert!(!words.any());
    }

    #[test]
    fn one_ring_has_no_others_and_a_liar_is_bounded() {
        let mut words = LastWords::default();
        assert!(words.keep(exited(1), b"", 0, 1) && words.next().is_some());
        for number in 0..MAX_LAST_WORDS as u32 {
            assert!(words.keep(exited(number), b"", 0, 64));
        }
        assert!(!words.keep(exited(0), b"", 0, 64));
        let mut words = LastWords::default();
        assert!(words.keep(exited(0), &[0; MAX_LAST_BYTES], 0, 64) && !words.keep(exited(1), b"x", 0, 64));
    }
}
