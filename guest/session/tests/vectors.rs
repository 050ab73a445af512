//! Known answers: one message of each kind, byte for byte. A difference here is another version of the protocol, see the
//! version rule in the crate's documentation. A new version gets new vectors; these are not edited.

use nacre_session::command::{Install, Invoke, Limits, ModuleKind, Priority};
use nacre_session::reply::{ExitKind, Outcome};
use nacre_session::{
    ClaimsHash, ClientHandshake, Command, CvmSessions, Draft, RecordError, Rejected, Reply, SigningKey, wire,
};
use std::convert::Infallible;
use std::fmt::Write;

/// Counts up instead of being random, so that vectors depend on no generator.
struct Counting(u8);

impl rand_core::TryRng for Counting {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for byte in bytes {
            *byte = self.0;
            self.0 = self.0.wrapping_add(1);
        }
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Counting {}

/// The messages as lines of `name hex`, the way they are in `vectors-1.txt`.
fn messages() -> String {
    let rng = &mut Counting(0);
    let mut lines = String::new();
    let mut line = |name: &str, bytes: &[u8]| {
        let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("a string takes all");
            hex
        });
        writeln!(lines, "{name} {hex}").expect("a string takes all");
    };
    let handshake = ClientHandshake::new(rng);
    line("evidence-request", &handshake.request());
    let draft = Draft::new(rng);
    let (id, public_key) = (draft.id(), *draft.public_key());
    line("offer", &wire::offer(id, b"evidence").expect("it is short"));
    let (mut cvm, claims) = (CvmSessions::new(), ClaimsHash([0xc1; 32]));
    cvm.publish(draft, claims, 7);
    let mut client = handshake.accept(id, &public_key, claims, rng).expect("the key is good");

    let install = Command::Install(Install {
        package: &[1; 32],
        key: &[2; 32],
        name: "bank",
        version: 3,
        kind: ModuleKind::TlsService,
        env: vec![("TOKEN", "x")],
    });
    let open = client.seal_signed(&install, &SigningKey::from_bytes(&[5; 32])).expect("it fits").bytes;
    line("open", &open);
    let request = cvm.accept(open).expect("it is genuine");
    line("response", &request.responder.seal(&Reply::Installed { version: 3, code: &[6; 32] }));

    let invoke = Command::Invoke(Invoke {
        action: "hash",
        args: vec!["-v"],
        env: vec![("K", "V")],
        limits: Limits { wall_ns: 1, cpu_ns: 2, memory_bytes: 3, output_bytes: 4, priority: Priority::Low },
        stdin: b"input",
    });
    let request = client.seal_request(&invoke).expect("it fits").bytes;
    line("request", &request);
    let request = cvm.accept(request).expect("it is genuine");
    let outcome = Reply::Outcome(Outcome {
        exit: ExitKind::Trap,
        code: 134,
        stdout_cut: true,
        stderr_cut: false,
        cold: true,
        cpu_ns: 1,
        queued_ns: 2,
        ran_ns: 3,
        text: "unreachable",
        stdout: b"out",
        stderr: b"err",
    });
    line("response", &request.responder.seal(&outcome));
    let error = RecordError::OutOfOrder { expected: 7 };
    line("failure", &Rejected { session: id, seq: 9, error }.encode());
    lines
}

#[test]
fn the_wire_format_is_that_of_version_1() {
    assert_eq!(wire::VERSION, 1);
    assert_eq!(messages(), include_str!("vectors-1.txt"));
}
