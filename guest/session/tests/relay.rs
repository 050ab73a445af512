//! Both ends through a node that drops, repeats, reorders, cuts and changes messages and swaps CVMs and clients, against a
//! model: whatever it does, only what was sealed arrives, in order and once, and every session goes on.

use nacre_session::command::{Invoke, Limits};
use nacre_session::{
    ClaimsHash, ClientError, ClientHandshake, ClientSession, Command, CvmSessions, Draft, RecordError,
    Refusal, Reply, Responder, SessionId,
};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use std::collections::BTreeSet;

const CLAIMS: ClaimsHash = ClaimsHash([7; 32]);

/// What happens to bytes on their way.
#[derive(Clone, Debug)]
enum Damage {
    None,
    Cut(prop::sample::Index),
    Flip(prop::sample::Index, u8),
    /// Another number in the header.
    Number(u8),
    /// Another session's name in the header.
    Session(prop::sample::Index),
    Longer,
}

#[derive(Clone, Debug)]
enum Step {
    Ask {
        client: prop::sample::Index,
        bytes: usize,
    },
    /// Any request ever sent, to any CVM, as often as it likes.
    Request {
        message: prop::sample::Index,
        cvm: prop::sample::Index,
        damage: Damage,
    },
    Answer {
        responder: prop::sample::Index,
    },
    /// Any response ever sent, to any client.
    Response {
        message: prop::sample::Index,
        client: prop::sample::Index,
        damage: Damage,
    },
    /// Any request as a response and the reverse.
    Reflect {
        message: prop::sample::Index,
    },
    /// A further session with a CVM, into which all that was recorded can be replayed.
    Open {
        cvm: prop::sample::Index,
    },
}

fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => Just(Damage::None),
        1 => index().prop_map(Damage::Cut),
        2 => (index(), 0..8u8).prop_map(|(at, bit)| Damage::Flip(at, 1 << bit)),
        1 => (0..4u8).prop_map(Damage::Number),
        1 => index().prop_map(Damage::Session),
        1 => Just(Damage::Longer),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        3 => (index(), 0..700usize).prop_map(|(client, bytes)| Step::Ask { client, bytes }),
        6 => (index(), index(), damage())
            .prop_map(|(message, cvm, damage)| Step::Request { message, cvm, damage }),
        2 => index().prop_map(|responder| Step::Answer { responder }),
        4 => (index(), index(), damage())
            .prop_map(|(message, client, damage)| Step::Response { message, client, damage }),
        1 => index().prop_map(|message| Step::Reflect { message }),
        1 => index().prop_map(|cvm| Step::Open { cvm }),
    ]
}

struct Client {
    session: ClientSession,
    cvm: usize,
    asked: Vec<Vec<u8>>,
    /// What the model says the CVM waits for.
    next: u64,
    answered: BTreeSet<u64>,
}

#[derive(Clone)]
struct Message {
    client: usize,
    seq: u64,
    bytes: Vec<u8>,
}

struct World {
    rng: ChaCha20Rng,
    cvms: Vec<CvmSessions>,
    clients: Vec<Client>,
    requests: Vec<Message>,
    responders: Vec<(usize, Responder)>,
    responses: Vec<Message>,
}

fn damaged(bytes: &[u8], damage: &Damage, ids: &[SessionId]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    match damage {
        Damage::None => {}
        Damage::Cut(to) => bytes.truncate(to.index(bytes.len())),
        Damage::Flip(at, bit) => {
            let at = at.index(bytes.len());
            bytes[at] ^= bit;
        }
        Damage::Number(to) => bytes[24] = *to,
        Damage::Session(of) => bytes[8..24].copy_from_slice(&ids[of.index(ids.len())].0),
        Damage::Longer => bytes.push(0),
    }
    bytes
}

impl World {
    fn new() -> World {
        let cvms = (0..2).map(|_| CvmSessions::new()).collect();
        let rng = ChaCha20Rng::seed_from_u64(1);
        let (clients, requests, responders, responses) = Default::default();
        let mut world = World { rng, cvms, clients, requests, responders, responses };
        world.open(0);
        world.open(1);
        world
    }

    fn open(&mut self, cvm: usize) {
        let draft = Draft::new(&mut self.rng);
        let (id, public_key) = (draft.id(), *draft.public_key());
        self.cvms[cvm].publish(draft, CLAIMS, 7);
        let session = ClientHandshake::new(&mut self.rng).accept(id, &public_key, CLAIMS, &mut self.rng);
        let (asked, answered) = Default::default();
        self.clients.push(Client { session: session.unwrap(), cvm, asked, next: 0, answered });
    }

    fn ids(&self) -> Vec<SessionId> {
        self.clients.iter().map(|client| client.session.id()).collect()
    }

    fn ask(&mut self, index: usize, bytes: usize) {
        let client = &mut self.clients[index];
        let seq = client.asked.len() as u64;
        let stdin = vec![(seq as u8).wrapping_mul(7).wrapping_add(index as u8); bytes];
        let (args, env, limits) = (vec![], vec![], Limits::default());
        let command = Command::Invoke(Invoke { action: "a", args, env, limits, stdin: &stdin });
        let sealed = client.session.seal_request(&command).unwrap();
        assert_eq!(sealed.seq, seq);
        self.requests.push(Message { client: index, seq, bytes: sealed.bytes });
        client.asked.push(stdin);
    }

    fn deliver_request(&mut self, message: &Message, cvm: usize, damage: &Damage) {
        let bytes = damaged(&message.bytes, damage, &self.ids());
        let pristine = bytes == message.bytes;
        let accepted = self.cvms[cvm].accept(bytes);
        let client = &mut self.clients[message.client];
        let expected = match message.seq {
            _ if client.cvm != cvm => Err(RecordError::UnknownSession),
            seq if seq < client.next => Err(RecordError::Replayed { next: client.next }),
            seq if seq > client.next => Err(RecordError::OutOfOrder { expected: client.next }),
            _ => Ok(()),
        };
        match accepted {
            Ok(request) => {
                assert!(pristine && expected.is_ok(), "{damage:?} was accepted");
                let Ok(Command::Invoke(invoke)) = request.body.command() else {
                    panic!("it was an invocation")
                };
                assert_eq!(invoke.stdin, client.asked[message.seq as usize]);
                client.next += 1;
                self.responders.push((message.client, request.responder));
            }
            Err(rejected) if pristine => assert_eq!(Err(rejected.error), expected),
            Err(_) => {}
        }
    }

    fn answer(&mut self, index: usize) {
        let (client, responder) = self.responders.swap_remove(index);
        let seq = responder.seq();
        let reply = Reply::Refused { reason: Refusal::Busy, value: seq, detail: "" };
        self.responses.push(Message { client, seq, bytes: responder.seal(&reply) });
    }

    fn deliver_response(&mut self, message: &Message, to: usize, damage: &Damage) {
        let bytes = damaged(&message.bytes, damage, &self.ids());
        let pristine = bytes == message.bytes;
        let client = &mut self.clients[to];
        let own = message.client == to;
        let before = client.session.unanswered();
        match client.session.open_response(bytes) {
            Ok(response) => {
                assert!(pristine && own, "{damage:?} was accepted");
                assert_eq!(response.seq(), message.seq);
                let reply = Reply::Refused { reason: Refusal::Busy, value: message.seq, detail: "" };
                assert_eq!(response.reply(), Ok(reply));
                assert!(client.answered.insert(message.seq), "answered twice");
                assert_eq!(client.session.unanswered(), before - 1);
            }
            Err(error) => {
                assert_eq!(client.session.unanswered(), before);
                if pristine && own {
                    assert_eq!(error, ClientError::AlreadyAnswered { seq: message.seq });
                    assert!(client.answered.contains(&message.seq));
                } else if pristine {
                    assert!(matches!(error, ClientError::OtherSession { .. }), "{error:?}");
                }
            }
        }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Ask { client, bytes } => self.ask(client.index(self.clients.len()), *bytes),
            Step::Request { message, cvm, damage } if !self.requests.is_empty() => {
                let message = message.get(&self.requests).clone();
                self.deliver_request(&message, cvm.index(2), damage);
            }
            Step::Answer { responder } if !self.responders.is_empty() => {
                self.answer(responder.index(self.responders.len()));
            }
            Step::Response { message, client, damage } if !self.responses.is_empty() => {
                let message = message.get(&self.responses).clone();
                self.deliver_response(&message, client.index(self.clients.len()), damage);
            }
            Step::Reflect { message } if !self.requests.is_empty() && !self.responses.is_empty() => {
                let request = message.get(&self.requests).clone();
                let client = &mut self.clients[request.client].session;
                assert!(client.open_response(request.bytes).is_err());
                let response = message.get(&self.responses).clone();
                assert!(self.cvms[self.clients[response.client].cvm].accept(response.bytes).is_err());
            }
            Step::Open { cvm } if self.clients.len() < 6 => self.open(cvm.index(2)),
            _ => {}
        }
    }

    /// The node behaves: everything that was asked is answered, once.
    fn finish(&mut self) {
        for message in self.requests.clone() {
            let cvm = self.clients[message.client].cvm;
            self.deliver_request(&message, cvm, &Damage::None);
        }
        while !self.responders.is_empty() {
            self.answer(0);
        }
        for message in self.responses.clone() {
            self.deliver_response(&message, message.client, &Damage::None);
        }
        for client in &self.clients {
            assert_eq!(client.next, client.asked.len() as u64);
            assert_eq!(client.answered.len(), client.asked.len());
            assert_eq!(client.session.unanswered(), 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_hostile_node_can_only_delay(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in &steps {
            world.run(step);
        }
        world.finish();
    }
}
