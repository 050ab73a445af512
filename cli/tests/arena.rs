//! A task that is stopped in the middle of its execution goes on in another CVM into which only the tenant arena was
//! copied: the proof that the arenas are split rightly. Needs the debug image, whose guest sends and takes its arena.
#![forbid(unsafe_code)]

use nacre_abi::message::{Header, Kind, NO_PROGRAM, stream};
use nacre_cli::compile::compile;
use nacre_cli::module::{Entry, Module};
use nacre_vmm::program::{Events, Exit, ProgramEvent, ProgramSpec};
use nacre_vmm::{Cvm, CvmConfig};

/// Touches 64 MiB of memory, says "started", mixes that memory for a while, then grows its memory, uses what it got, prints a
/// checksum and ends with a trap three calls deep.
const PROGRAM: &str = include_str!("mover.wat");

fn launch() -> Option<Cvm> {
    match nacre_vmm::kvm::available() {
        Ok(()) => {}
        Err(error) => {
            nacre_tests::skip::skipped("arena copy", &error.to_string());
            return None;
        }
    }
    Some(
        Cvm::launch(CvmConfig {
            workers: 2,
            memory_bytes: 512 << 20,
            debug_image: true,
            ..CvmConfig::default()
        })
        .unwrap(),
    )
}

fn expect_output(events: &Events, wanted: usize) -> Vec<u8> {
    let mut text = Vec::new();
    while text.len() < wanted {
        match events.recv().unwrap() {
            ProgramEvent::Output { bytes, .. } => text.extend(bytes),
            other => panic!("{other:?} instead of output"),
        }
    }
    text
}

fn spec(code: &nacre_cli::program::Program) -> ProgramSpec<'_> {
    ProgramSpec { code: code.file(), args: vec!["mover".into()], ..ProgramSpec::default() }
}

#[test]
fn a_running_task_finishes_in_a_cvm_that_got_only_the_tenant_arena() {
    let wasm = wat::parse_str(PROGRAM).unwrap();
    let code = compile(&Module::parse(&wasm, Entry::Command).unwrap(), Default::default()).unwrap();
    let Some(undisturbed) = launch() else { return };
    let (expected_exit, expected_output, _) = undisturbed.load(&spec(&code)).unwrap().run_to_end().unwrap();
    drop(undisturbed);
    let Exit::Trap(expected_trap) = expected_exit else { panic!("{expected_exit:?}") };
    assert!(expected_trap.contains("boom") && expected_trap.contains("outer"), "{expected_trap}");

    let (source, destination) = (launch().unwrap(), launch().unwrap());
    let arena = source.cvm_events();
    let program = source.load(&spec(&code)).unwrap();
    program.start().unwrap();
    assert_eq!(expect_output(&program.events, 8), b"started\n");
    let moved = destination.adopt_program(program.id, [8, 0]);
    source.send(Header::new(Kind::ArenaDump, NO_PROGRAM), &[]).unwrap();
    let mut bytes = 0;
    loop {
        let ProgramEvent::Message(header, body) = arena.recv().unwrap() else { continue };
        match header.kind {
            Kind::ArenaPage | Kind::ArenaLazy => {
                bytes += if header.kind == Kind::ArenaPage { body.len() } else { 0 };
                destination.send(header, &body).unwrap();
            }
            Kind::ArenaEnd => break,
            _ => {}
        }
    }
    // The source was stopped before it could finish, and is gone before the destination goes on.
    assert!(program.events.try_recv().is_none(), "the program ended in the source");
    drop(program);
    drop(source);
    assert!(bytes > 64 << 20, "the program's 64 MiB are among the {bytes} bytes copied");
    destination.send(Header::new(Kind::ArenaEnd, NO_PROGRAM), &[]).unwrap();
    let output = expect_output(&moved, 17);
    assert_eq!([b"started\n".as_slice(), &output].concat(), expected_output);
    loop {
        match moved.recv().unwrap() {
            ProgramEvent::Exited(exit) => {
                assert_eq!(exit, Exit::Trap(expected_trap));
                break;
            }
            ProgramEvent::Output { stream: stream::STDOUT, bytes, .. } => panic!("more output: {bytes:?}"),
            _ => {}
        }
    }
}

#[test]
fn memory_that_programs_free_goes_back_to_the_host() {
    const TOUCH: &str = r#"(module (memory (export "memory") 6400)
      (func (export "_start") (local $p i32)
        (loop $again
          (i32.store (local.get $p) (i32.const 1))
          (br_if $again (i32.lt_u (local.tee $p (i32.add (local.get $p) (i32.const 4096))) (i32.const 419430400))))))"#;
    let Some(cvm) = launch() else { return };
    let wasm = wat::parse_str(TOUCH).unwrap();
    let code = compile(&Module::parse(&wasm, Entry::Command).unwrap(), Default::default()).unwrap();
    let program = cvm.load(&spec(&code)).unwrap();
    assert_eq!(program.run_to_end().unwrap().0, Exit::Code(0));
    drop(program);
    // The release happens when vCPU 0 has nothing else to do: each question finds it later than that.
    for _ in 0..10_000 {
        let stats = cvm.stats().unwrap();
        if stats.guest.released_bytes >= 300 << 20 {
            assert!(stats.resident_bytes.unwrap() < 120 << 20, "{stats:?}");
            return;
        }
    }
    panic!("nothing was released: {:?}", cvm.stats().unwrap());
}
