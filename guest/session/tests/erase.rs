//! No key and no plaintext is left in memory that was given back to the heap. Best effort: stacks and registers are not seen.
//!
//! The allocator of this test searches each block that is freed for the secrets, which the test derives a second time.

use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, Serializable};
use nacre_session::command::{Install, ModuleKind};
use nacre_session::{ClaimsHash, ClientHandshake, Command, CvmSessions, Draft, LABEL, Reply, SigningKey};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use ring::hmac;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The first eight bytes of each secret; zero for none.
static SECRETS: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
static FOUND: AtomicUsize = AtomicUsize::new(0);

struct Searching;

// SAFETY: everything is passed on to the system's allocator; `realloc` stays the default one, which comes here.
unsafe impl GlobalAlloc for Searching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise. Zeros, so that a block holds nothing from before.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is the caller's, of this size, and was initialised when it was allocated.
        let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) };
        for window in bytes.windows(8) {
            let window = u64::from_ne_bytes(*window.first_chunk().expect("eight bytes"));
            if window != 0 && SECRETS.iter().any(|secret| secret.load(Relaxed) == window) {
                FOUND.fetch_add(1, Relaxed);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Searching = Searching;

fn search_for(place: usize, secret: &[u8]) {
    SECRETS[place].store(u64::from_ne_bytes(*secret.first_chunk().expect("eight bytes")), Relaxed);
}

fn found() -> usize {
    FOUND.swap(0, Relaxed)
}

#[test]
fn freed_memory_holds_no_secret() {
    let claims = ClaimsHash([7; 32]);
    let rng = &mut ChaCha20Rng::seed_from_u64(1);
    let mut cvm = CvmSessions::with_limits(3, 2);
    // Others around it, so that what holds keys is moved about.
    for _ in 0..2 {
        cvm.publish(Draft::new(rng), claims, 7);
    }
    let mut again = rng.clone();
    again.fill_bytes(&mut [0; 16]);
    let (private, _) = X25519HkdfSha256::gen_keypair_with_rng(&mut again);
    let draft = Draft::new(rng);
    let (id, public_key) = (draft.id(), *draft.public_key());
    search_for(0, &private.to_bytes());
    cvm.publish(draft, claims, 7);
    let mut client = ClientHandshake::new(rng).accept(id, &public_key, claims, rng).expect("a good key");

    let (key, env) = (*b"data encryption key of 32 bytes!", vec![("A", "environment with a secret")]);
    search_for(1, &key);
    search_for(2, env[0].1.as_bytes());
    let (name, kind) = ("bank", ModuleKind::Action);
    let install = Command::Install(Install { package: &[1; 32], key: &key, name, version: 1, kind, env });
    let open = client.seal_signed(&install, &SigningKey::from_bytes(&[9; 32])).expect("it fits").bytes;

    let enc = Deserializable::from_bytes(&open[32..64]).expect("a key");
    let info = [LABEL, &claims.0].concat();
    let mode = OpModeR::Base;
    let context =
        hpke::setup_receiver::<AesGcm256, HkdfSha256, X25519HkdfSha256>(&mode, &private, &enc, &info);
    let context = context.expect("a good key");
    // The secrets of the chain, and the keys of two requests with their answers.
    let mut secret = [0; 32];
    context.export(b"nacre chain", &mut secret).expect("it is short");
    for request in 0..2 {
        let chain = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        search_for(3 + 3 * request, &secret);
        search_for(4 + 3 * request, hmac::sign(&chain, b"request").as_ref());
        search_for(5 + 3 * request, hmac::sign(&chain, b"response").as_ref());
        secret.copy_from_slice(hmac::sign(&chain, b"next").as_ref());
    }
    search_for(9, &secret);
    assert_eq!(found(), 0);

    let request = cvm.accept(open).expect("it is genuine");
    assert_eq!(request.body.command().as_ref(), Ok(&install));
    let second = client.seal_request(&install).expect("it fits").bytes;
    let second = cvm.accept(second).expect("it is genuine");
    let answer = request.responder.seal(&Reply::Removed { version: 1 });
    client.open_response(answer).expect("it is genuine").reply().expect("it is well formed");
    drop(second);
    drop(request.body);
    cvm.close_all();
    drop(cvm);
    drop(client);
    assert_eq!(found(), 0, "a freed block holds a secret");

    drop(std::hint::black_box(Box::new((private.to_bytes(), key))));
    assert_eq!(found(), 2, "the search finds what is there");
}
