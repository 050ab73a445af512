//! Every function with random arguments over random memory: nothing panics, and results stay in memory.

use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::{Program, TestSystem};
use crate::*;

/// Hands out arguments: mostly small numbers that hit something, sometimes anything.
struct Args<'a>(&'a [u64], usize);

impl Args<'_> {
    fn next(&mut self) -> u64 {
        self.1 += 1;
        self.0[self.1 % self.0.len()]
    }
}

/// From the raw argument to one of a parameter's type.
trait Argument {
    fn from_raw(raw: u64) -> Self;
}

impl Argument for u32 {
    fn from_raw(raw: u64) -> Self {
        raw as u32
    }
}

impl Argument for u64 {
    fn from_raw(raw: u64) -> Self {
        raw
    }
}

macro_rules! dispatch {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $result:ident;)*) => {
        const FUNCTIONS: &[fn(&mut Call<'_, TestSystem>, &mut Args<'_>) -> Result<Errno, Stop>] =
            &[$(|_c, _args| { $(let $arg = <$ty>::from_raw(_args.next());)* $name(_c, $($arg),*) }),*];
    };
}
for_each_preview1!(dispatch);

fn argument() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0..8_u64,
        4 => 0..70_u64,
        3 => (0..2048_u64).prop_map(|at| at * 8),
        1 => 16_300..16_400_u64,
        1 => any::<u64>(),
        1 => prop::sample::select(vec![u64::MAX, u64::from(u32::MAX), 1 << 31, 1 << 63, (1 << 30) - 1]),
    ]
}

/// Memory with things in it that look like paths, vectors, subscriptions.
fn memory() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        3 => (0..2048_u64).prop_map(|at| (at * 8) | (at % 100) << 32),
        2 => prop::sample::select(vec![*b"f\0d/l/..", *b"d/f/../f", *b"../../ab", *b"abcdefgh", *b"l/l/l/l/"])
            .prop_map(u64::from_le_bytes),
        2 => 0..4_u64,
        1 => any::<u64>(),
    ];
    prop::collection::vec(word, 2048)
        .prop_map(|words| words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn nothing_panics(
        memory in memory(),
        calls in prop::collection::vec((0..FUNCTIONS.len(), prop::collection::vec(argument(), 1..10)), 1..150),
    ) {
        let mut p = Program::new();
        for d in ["d", "l"] {
            p.mkdir(d);
        }
        p.create("f");
        p.symlink("f", "d/l");
        p.symlink("d", "l/l");
        p.ctx.fs.set_limit(4 << 20);
        p.ctx.system.stdin_open = true;
        p.memory = memory;
        for (which, raw) in calls {
            // The answer does not matter; that there is one does.
            let _ = FUNCTIONS[which](&mut p.call(), &mut Args(&raw, 0));
            prop_assert_eq!(p.memory.len(), 16384);
        }
        // Whatever happened, closing everything and removing the tree gives all memory back.
        for fd in 0..1000 {
            p.close(fd);
        }
        let root = p.ctx.fs.open_dir("/").unwrap();
        let mut paths: Vec<(std::string::String, bool)> = vec![];
        let mut cursor = p.ctx.fs.export("/").unwrap();
        while let Some(entry) = cursor.next(&p.ctx.fs).unwrap() {
            paths.push((entry.path.into(), entry.kind == EntryKind::Dir));
        }
        for (path, dir) in paths.iter().rev() {
            let removed = if *dir { p.ctx.fs.rmdir(root, path, 0) } else { p.ctx.fs.unlink(root, path, 0) };
            prop_assert_eq!(removed, Ok(()), "{}", path);
        }
        prop_assert_eq!((p.ctx.fs.inode_count(), p.ctx.fs.allocated_bytes()), (1, 0));
    }
}
