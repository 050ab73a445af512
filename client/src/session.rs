//! Sealed sessions: evidence first, then secrets.
//!
//! ```text
//! SealedSession::open: nonce -> evidence -> verify -> accepted: a session, whose first request opens it at the CVM
//!                                                  -> rejected: SessionError, and nothing but the nonce was sent
//! request -> answer                                   the CVM's, authentic
//!         -> Lost, Replayed, OutOfOrder, Forged ...   nobody knows whether it ran, and it is not sent again under another number
//! ```
//! The same bytes are sent again when a connection breaks or the node is busy: a CVM accepts each number once, so that they can't
//! run twice.

use crate::http::{Node, NodeError};
use crate::outcome::{Installed, Outcome};
use crate::random;
use crate::release::Release;
use hyper::body::Bytes;
use nacre_attest::claims::{Label, Role};
use nacre_attest::evidence::Evidence;
use nacre_attest::manifest::{Manifest, Mode};
use nacre_attest::policy::Policy;
use nacre_attest::verify::{Expect, Verdict, rule, verify};
use nacre_attest::wire::WireError;
use nacre_session::command::{Invoke, Limits, Logs, Remove};
use nacre_session::wire::decode_offer;
use nacre_session::{
    ClaimsHash, ClientError, ClientHandshake, ClientSession, Command, DecodeError, EncodeError, RecordError,
    Refusal, Reply, SealedRequest, SigningKey,
};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long calls wait for a new CVM to be provisioned; the pauses before they look again double, from the first to the longest.
const PATIENCE: Duration = Duration::from_secs(10);
const PROVISIONING_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// How often a call is made in a new session because the CVM's code changed under the one before.
const MAX_CODE_CHANGES: u32 = 8;
/// Pauses before a busy node is asked again.
const BUSY_PAUSES_MS: [u64; 7] = [20, 50, 100, 200, 500, 1000, 2000];

/// Why there is no session, or no answer. Errors of the policy's side come before anything secret has been sent.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The node can't be talked to, or says no.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The policy does not say whose CVM it has to be: the node's own would do.
    #[error("the policy names no owner; add [manifest] with owner, minimum_version and mode = \"sealed\"")]
    NoOwner,
    /// The policy is for open CVMs, which hold no secrets.
    #[error("the policy asks for an open CVM, which keeps no secrets; write mode = \"sealed\"")]
    OpenPolicy,
    /// What came is no offer.
    #[error("what the node sent is no offer of a session: {0}; is it of this release?")]
    Offer(RecordError),
    /// What came is no evidence.
    #[error("what the node sent is no evidence: {0}; is it of this release?")]
    Format(WireError),
    /// The evidence was made for another request: it is old, or another client's.
    #[error("the evidence was not made for this request, its nonce is another's; do not trust this node")]
    WrongNonce(Box<Rejection>),
    /// The policy rejects the evidence.
    #[error("the evidence is rejected by {}; nothing secret was sent", failed(&.0.verdict))]
    Rejected(Box<Rejection>),
    /// The offer is of another session than its evidence.
    #[error("the evidence binds another session than the node offers; do not trust this node")]
    OtherSession,
    /// The key that is to sign a command is neither the owner's nor a broker's.
    #[error("the key is neither the owner's nor a broker's of the manifest; sign with one of those")]
    NoAuthority,
    /// The CVM does not know the session: the node swapped CVMs or restarted, or the CVM was ended.
    #[error(
        "the session is lost: {why}; {}",
        if *.may_have_run { "the request may have run, look before you send it again" } else { "open another" }
    )]
    Lost {
        /// Whether the request had been handed to the node.
        may_have_run: bool,
        /// What happened.
        why: String,
    },
    /// The answer, or the request, was used before.
    #[error(
        "the node repeated a message of this session; the request may have run, look before you send it again"
    )]
    Replayed,
    /// Something is missing before it.
    #[error("the node dropped or reordered messages, number {expected} is missing; open another session")]
    OutOfOrder {
        /// What the CVM waits for.
        expected: u64,
    },
    /// A message does not come from the other end of the session, or not as that sent it.
    #[error("the node forged or changed a message; the request may have run, look before you send it again")]
    Forged,
    /// The session is used up.
    #[error("the session has carried all the requests it can; open another")]
    Exhausted,
    /// The node's answer is none, or somebody turned the request away for another reason.
    #[error("the answer is no good: {0}; open another session")]
    Protocol(RecordError),
    /// The CVM's answer is none: it is genuine, but of another release.
    #[error("the CVM's answer can't be read: {0}; use a client of its release")]
    Answer(DecodeError),
    /// The CVM answered another question.
    #[error("the CVM answered with something else; use a client of its release")]
    OtherReply,
    /// The command can't be sealed.
    #[error("the command can't be sealed: {0}; send less")]
    Encode(EncodeError),
    /// The CVM's public key is none. Its report was genuine all the same.
    #[error("the CVM's public key is none; do not trust this node")]
    BadPublicKey,
    /// The CVM has proved that it runs no code, and the policy says which: what is sent now could reach other code.
    #[error("the CVM has no code, and the policy's code list is for some; deploy it, or start a key broker")]
    NoCode,
    /// The CVM says no.
    #[error("{}", refused(.reason, *.value, .detail))]
    Refused {
        /// Why.
        reason: Refusal,
        /// A number that belongs to it.
        value: u64,
        /// More about it, or empty.
        detail: String,
    },
}

/// Evidence that was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// What was judged.
    pub evidence: Evidence,
    /// Every rule, with the result.
    pub verdict: Verdict,
}

/// Names of the rules that failed, with what was found.
fn failed(verdict: &Verdict) -> String {
    let all: Vec<String> = verdict.failed().map(|rule| format!("{} ({})", rule.name, rule.detail)).collect();
    all.join(", ")
}

fn refused(reason: &Refusal, value: u64, detail: &str) -> String {
    let text = reason.to_string();
    let value = match reason {
        Refusal::OlderVersion | Refusal::SameVersion | Refusal::OtherVersion => format!(" (version {value})"),
        Refusal::TooMany => format!(" ({value})"),
        _ => String::new(),
    };
    let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
    match text.split_once("; ") {
        Some((why, remedy)) => format!("{why}{value}{detail}; {remedy}"),
        None => format!("{text}{value}{detail}"),
    }
}

impl SessionError {
    /// What was rejected, if evidence was.
    #[must_use]
    pub fn rejection(&self) -> Option<&Rejection> {
        match self {
            Self::WrongNonce(rejection) | Self::Rejected(rejection) => Some(rejection),
            _ => None,
        }
    }

    /// Whether nothing was sent that had to be sealed, so that doing all of it again is safe.
    #[must_use]
    pub fn nothing_ran(&self) -> bool {
        match self {
            Self::NoOwner
            | Self::OpenPolicy
            | Self::Offer(_)
            | Self::Format(_)
            | Self::WrongNonce(_)
            | Self::Rejected(_)
            | Self::OtherSession
            | Self::NoAuthority
            | Self::Exhausted
            | Self::Encode(_)
            | Self::BadPublicKey
            | Self::NoCode
            | Self::Lost { may_have_run: false, .. } => true,
            Self::Refused { reason, .. } => *reason != Refusal::AnswerTooLong,
            // Only requests for evidence come back with it; a record's are `Lost`.
            Self::Node(_) => true,
            Self::Lost { may_have_run: true, .. }
            | Self::Replayed
            | Self::OutOfOrder { .. }
            | Self::Forged
            | Self::Protocol(_)
            | Self::Answer(_)
            | Self::OtherReply => false,
        }
    }
}

/// What a client expects besides its policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectations {
    /// Seconds since 1970 by which certificates are judged; `None`: their dates are not.
    pub now: Option<u64>,
    /// Whether the caller is going to provision the CVM, so that the node does not wait for a broker.
    pub provisioning: bool,
    /// How long a call waits for a broker if the CVM has nothing installed at all: it is new.
    pub patience: Duration,
}

impl Default for Expectations {
    fn default() -> Self {
        Self::new()
    }
}

impl Expectations {
    /// Certificates are valid now; the CVM is provisioned.
    #[must_use]
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map(|now| now.as_secs());
        Self { now: Some(now.unwrap_or(0)), provisioning: false, patience: PATIENCE }
    }

    /// The same for an owner or a broker.
    #[must_use]
    pub fn provisioning() -> Self {
        Self { provisioning: true, ..Self::new() }
    }
}

/// A session with a CVM whose evidence was accepted. A call opens another one in its place when the CVM's code has changed. Its keys are wiped when it is dropped.
pub struct SealedSession {
    node: Node,
    session: ClientSession,
    evidence: Evidence,
    verdict: Verdict,
    manifest: Manifest,
    policy: Policy,
    expect: Expectations,
    over: bool,
}

impl std::fmt::Debug for SealedSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedSession").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Gets evidence for a fresh nonce, whatever it is worth, and the session it is offered for.
///
/// # Errors
/// `Node`, `Offer`, `Format`.
async fn offered(
    node: &Node,
    provisioning: bool,
) -> Result<(ClientHandshake, nacre_session::SessionId, Evidence), SessionError> {
    let handshake = ClientHandshake::new(&mut random());
    let offer = node.evidence(handshake.request(), provisioning).await?;
    let (id, evidence) = decode_offer(&offer).map_err(SessionError::Offer)?;
    let evidence = Evidence::decode(evidence).map_err(SessionError::Format)?;
    Ok((handshake, id, evidence))
}

/// Gets evidence and judges it, for people who want to look; opens no session.
///
/// # Errors
/// `Node`, `Offer`, `Format`. That it is rejected is the verdict's.
pub async fn fetch(
    node: &Node,
    policy: &Policy,
    expect: &Expectations,
) -> Result<(Evidence, [u8; 32], Verdict), SessionError> {
    let (handshake, _, evidence) = offered(node, expect.provisioning).await?;
    let nonce = *handshake.nonce();
    let verdict = verify(&evidence, policy, &expected(nonce, expect.now));
    Ok((evidence, nonce, verdict))
}

/// What evidence for a session is judged by.
#[must_use]
pub fn expected(nonce: [u8; 32], now: Option<u64>) -> Expect {
    Expect { nonce, label: Label::Session, role: Role::Cvm, now }
}

impl SealedSession {
    /// Fetches evidence for a fresh nonce, verifies it, and makes a session of it. The node learns the nonce, no more.
    ///
    /// # Errors
    /// [`SessionError`]: all are before anything secret was sent.
    pub async fn open(
        node: &Node,
        policy: &Policy,
        expect: &Expectations,
    ) -> Result<SealedSession, SessionError> {
        match policy.manifest {
            None => return Err(SessionError::NoOwner),
            Some(rule) if rule.mode != Mode::Sealed => return Err(SessionError::OpenPolicy),
            Some(_) => {}
        }
        let (handshake, id, evidence) = offered(node, expect.provisioning).await?;
        let verdict = verify(&evidence, policy, &expected(*handshake.nonce(), expect.now));
        if verdict.rule(rule::NONCE).is_none_or(|rule| !rule.passed) {
            return Err(SessionError::WrongNonce(Box::new(Rejection { evidence, verdict })));
        }
        let manifest = match &verdict.manifest {
            Some(manifest) if verdict.accepted() => manifest.clone(),
            _ => return Err(SessionError::Rejected(Box::new(Rejection { evidence, verdict }))),
        };
        if evidence.claims.id != id.0 {
            return Err(SessionError::OtherSession);
        }
        let key = evidence.claims.key.as_slice().try_into().map_err(|_| SessionError::BadPublicKey)?;
        let claims = ClaimsHash(evidence.claims.hash());
        let session = handshake.accept(id, key, claims, &mut random());
        let session = session.map_err(|_| SessionError::BadPublicKey)?;
        let (node, policy, expect) = (node.clone(), policy.clone(), *expect);
        Ok(SealedSession { node, session, evidence, verdict, manifest, policy, expect, over: false })
    }

    /// Fetches new evidence, judges it by the same policy, and goes on with a session of it.
    async fn reopen(&mut self) -> Result<(), SessionError> {
        *self = SealedSession::open(&self.node, &self.policy, &self.expect).await?;
        Ok(())
    }

    /// The evidence that was accepted, last if calls had to open another session.
    #[must_use]
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// What was judged, all of it passed.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// The manifest the CVM was launched with.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Calls an action with nothing but standard input.
    ///
    /// # Errors
    /// [`SessionError`]; that the action failed is in the outcome.
    pub async fn call(&mut self, action: &str, stdin: &[u8]) -> Result<Outcome, SessionError> {
        let (args, env, limits) = (Vec::new(), Vec::new(), Limits::default());
        self.invoke(Invoke { action, args, env, limits, stdin }).await
    }

    /// Calls an action. The CVM runs it only if its code is what this session's evidence lists. If the code has changed, new evidence
    /// is fetched, judged by the same policy, and the call made in its session: the CVM has said, sealed, that nothing ran. The same
    /// is done for a while if the CVM was new when it proved itself, and has no such action: a broker may be on its way. If the
    /// policy lists code, nothing is sent to a CVM that has none.
    ///
    /// # Errors
    /// [`SessionError`]; that the action failed is in the outcome.
    pub async fn invoke(&mut self, call: Invoke<'_>) -> Result<Outcome, SessionError> {
        let command = Command::Invoke(call);
        let deadline = Instant::now() + self.expect.patience;
        let (mut changes, mut pause) = (0, PROVISIONING_PAUSES.0);
        loop {
            let new = self.evidence.code.is_empty();
            let done = match new && self.policy.code.is_some() {
                true => Err(SessionError::NoCode),
                false => self.command(&command, None, outcome).await,
            };
            match done {
                Err(SessionError::Refused { reason: Refusal::CodeChanged, .. })
                    if changes < MAX_CODE_CHANGES =>
                {
                    changes += 1;
                }
                Err(SessionError::NoCode | SessionError::Refused { reason: Refusal::UnknownAction, .. })
                    if new && Instant::now() < deadline =>
                {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PROVISIONING_PAUSES.1);
                }
                done => return done,
            }
            self.reopen().await?;
        }
    }

    /// Installs a release: its key and its variables go to the CVM, in a command that `authority` signs. The node must have the
    /// package. Returns the hash of the code.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn install(
        &mut self,
        release: &Release,
        authority: &SigningKey,
    ) -> Result<[u8; 32], SessionError> {
        self.command(&Command::Install(release.install()), Some(authority), |reply| match reply {
            Reply::Installed { code, .. } => Some(**code),
            _ => None,
        })
        .await
    }

    /// Removes what is installed under a name, if it has this version.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn remove(
        &mut self,
        name: &str,
        version: u64,
        authority: &SigningKey,
    ) -> Result<(), SessionError> {
        self.command(&Command::Remove(Remove { name, version }), Some(authority), |reply| {
            matches!(reply, Reply::Removed { .. }).then_some(())
        })
        .await
    }

    /// Lists what is installed.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn status(&mut self, authority: &SigningKey) -> Result<Vec<Installed>, SessionError> {
        self.command(&Command::Status, Some(authority), |reply| match reply {
            Reply::Status(list) => Some(list.iter().map(Installed::from).collect()),
            _ => None,
        })
        .await
    }

    /// Reads what is kept of a service's log, from byte `from` on: which byte the first of them is, and the bytes.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn logs(
        &mut self,
        name: &str,
        from: u64,
        authority: &SigningKey,
    ) -> Result<(u64, Vec<u8>), SessionError> {
        self.command(&Command::Logs(Logs { name, from }), Some(authority), |reply| match reply {
            Reply::Logs { first, bytes } => Some((*first, bytes.to_vec())),
            _ => None,
        })
        .await
    }

    /// Seals a command, sends it, and takes of the reply what it is to be.
    async fn command<T>(
        &mut self,
        command: &Command<'_>,
        authority: Option<&SigningKey>,
        take: impl FnOnce(&Reply<'_>) -> Option<T>,
    ) -> Result<T, SessionError> {
        if self.over {
            let why = "an earlier request of it had no answer".to_owned();
            return Err(SessionError::Lost { may_have_run: false, why });
        }
        let sealed = match authority {
            None => self.session.seal_request(command),
            Some(key) => {
                let key_bytes = key.verifying_key();
                if self.manifest.owner != key_bytes && !self.manifest.brokers.contains(&key_bytes) {
                    return Err(SessionError::NoAuthority);
                }
                self.session.seal_signed(command, key)
            }
        };
        let sealed = sealed.map_err(from_client)?;
        let seq = sealed.seq;
        let answer = self.relay(sealed).await?;
        let response = self.session.open_response(answer.to_vec()).map_err(from_client);
        let response = response.inspect_err(|error| self.over |= is_end(error))?;
        if response.seq() != seq {
            return Err(SessionError::OutOfOrder { expected: seq });
        }
        let reply = response.reply().map_err(SessionError::Answer)?;
        if let Reply::Refused { reason, value, detail } = reply {
            return Err(SessionError::Refused { reason, value, detail: detail.to_owned() });
        }
        take(&reply).ok_or(SessionError::OtherReply)
    }

    /// Has the node relay a sealed request. The bytes may be sent more than once, see above. Whatever the node answered, it had the
    /// request by then, and may have handed it over: "busy" is its word only.
    async fn relay(&mut self, sealed: SealedRequest) -> Result<Bytes, SessionError> {
        let record = Bytes::from(sealed.bytes);
        let (mut pauses, mut broken, mut sent) = (BUSY_PAUSES_MS.iter(), false, false);
        let why = loop {
            match self.node.record(record.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(NodeError::Broken { .. }) if !broken => (broken, sent) = (true, true),
                Err(error) if error.status() == Some(429) => {
                    sent = true;
                    match pauses.next() {
                        Some(pause) => tokio::time::sleep(Duration::from_millis(*pause)).await,
                        None => break error,
                    }
                }
                Err(error @ NodeError::Unreachable { .. }) => break error,
                Err(error) => {
                    sent = true;
                    break error;
                }
            }
        };
        // The CVM may not have this number: whatever comes next would be out of order.
        self.over = true;
        let why = why.to_string();
        let why = why.split_once("; ").map_or(why.as_str(), |(why, _)| why).to_owned();
        Err(SessionError::Lost { may_have_run: sent, why })
    }
}

fn outcome(reply: &Reply<'_>) -> Option<Outcome> {
    match reply {
        Reply::Outcome(outcome) => Some(Outcome::from(outcome)),
        _ => None,
    }
}

/// After these the CVM accepts nothing more of this session.
fn is_end(error: &SessionError) -> bool {
    matches!(error, SessionError::Lost { .. } | SessionError::OutOfOrder { .. } | SessionError::Exhausted)
}

fn from_client(error: ClientError) -> SessionError {
    match error {
        ClientError::BadPublicKey => SessionError::BadPublicKey,
        ClientError::Encode(error) => SessionError::Encode(error),
        ClientError::Exhausted => SessionError::Exhausted,
        ClientError::Record(RecordError::Forged) => SessionError::Forged,
        ClientError::Record(error) => SessionError::Protocol(error),
        ClientError::OtherSession { .. } | ClientError::NeverAsked { .. } => SessionError::Forged,
        ClientError::AlreadyAnswered { .. } => SessionError::Replayed,
        ClientError::TurnedAway { error, .. } => match error {
            RecordError::UnknownSession => {
                let why = "the CVM that answers does not know it: the node restarted or swapped CVMs";
                SessionError::Lost { may_have_run: true, why: why.to_owned() }
            }
            RecordError::Replayed { .. } => SessionError::Replayed,
            RecordError::OutOfOrder { expected } => SessionError::OutOfOrder { expected },
            RecordError::Forged => SessionError::Forged,
            // In the clear: it may have run. `Exhausted` is what this end has counted itself.
            error => SessionError::Protocol(error),
        },
    }
}
