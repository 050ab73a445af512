//! The compiled code that was used last, in memory: a first call in a CVM then neither reads the file nor computes its digest.

use crate::names::Digest;
use nacre_compile::program::Program;
use std::collections::HashMap;
use std::sync::Arc;

/// One program may take this part of the room.
const MAX_SHARE: usize = 8;

struct Kept {
    program: Arc<Program>,
    last_used: u64,
}

/// Programs by their modules' digests, the most recently used ones.
pub(super) struct Recent {
    kept: HashMap<Digest, Kept>,
    /// Bytes of all of them.
    bytes: usize,
    max_bytes: usize,
    /// Counts uses.
    clock: u64,
}

impl Recent {
    /// Room for so many bytes of code.
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { kept: HashMap::new(), bytes: 0, max_bytes, clock: 0 }
    }

    /// The program of a module, if it is here.
    pub(super) fn get(&mut self, digest: Digest) -> Option<Arc<Program>> {
        self.clock += 1;
        let kept = self.kept.get_mut(&digest)?;
        kept.last_used = self.clock;
        Some(kept.program.clone())
    }

    /// Keeps a program in the place of those that were not used for longest, unless it is long itself.
    pub(super) fn put(&mut self, digest: Digest, program: &Arc<Program>) {
        let bytes = program.file().len();
        if bytes > self.max_bytes / MAX_SHARE || self.kept.contains_key(&digest) {
            return;
        }
        self.clock += 1;
        self.bytes += bytes;
        self.kept.insert(digest, Kept { program: program.clone(), last_used: self.clock });
        while self.bytes > self.max_bytes {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.last_used).map(|(digest, _)| *digest);
            let Some(gone) = oldest.and_then(|oldest| self.kept.remove(&oldest)) else { return };
            self.bytes -= gone.program.file().len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_engine::{CpuTarget, Header};

    fn program(source: &[u8], bytes: usize) -> Arc<Program> {
        let payload = vec![7; bytes];
        let header = Header::describe(source, &payload, CpuTarget::X86_64V3, true, 0).unwrap();
        Arc::new(Program::from_payload(header, &payload).unwrap())
    }

    #[test]
    fn the_room_is_kept_and_the_least_recently_used_goes() {
        let digest = |number: u8| Digest([number; 32]);
        let one = program(b"one", 1000);
        let size = one.file().len();
        let mut recent = Recent::new(8 * size);
        (0..8).for_each(|number| recent.put(digest(number), &one));
        // Kept once.
        recent.put(digest(7), &one);
        assert_eq!(recent.bytes, 8 * size);
        assert!(recent.get(digest(0)).is_some());
        recent.put(digest(8), &one);
        assert_eq!(recent.bytes, 8 * size);
        assert!(recent.get(digest(1)).is_none());
        assert!([0, 2, 3, 4, 5, 6, 7, 8].map(digest).into_iter().all(|digest| recent.get(digest).is_some()));
        recent.put(digest(9), &program(b"long", 1001));
        assert!(recent.get(digest(9)).is_none(), "one program is not to push out many");
    }
}
