//! The source of a migration: prepares the destination, follows its own guest, and hands over.

use super::deliver::{Answer, deliver};
use super::job::{Job, Step};
use super::line::{Ears, Mouth};
use super::net::{Net, NetError, REJOIN};
use super::offering::{Plan, ask, refusal, streams};
use super::{
    AskRejoin, Away, Commit, DestinationWord, Migrations, Mode, OutEvent, Outgoing, Parked, PeerName,
    RejoinTicket, SourceWord, tunnel,
};
use crate::names::hex;
use crate::store::StoreError;
use crate::tenants::Standing;
use nacre_vmm::migration::{COMMIT_BYTES, MoveMode, MoveNews, MoveOptions, Moving};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// News of the guest that wait to be dealt with; a guest that tells more is not heard.
const MAX_NEWS: usize = 1024;
/// How long tasks may be parked before the migration is given up: longer than any downtime but that of the baseline.
const PARKED_PATIENCE: Duration = Duration::from_secs(30);
const PARKED_PATIENCE_BASELINE: Duration = Duration::from_secs(600);
/// How long the other node has for its last word on a migration that ended.
const LAST_WORD: Duration = Duration::from_secs(2);
/// How long the guest has to hear that the destination has everything, once this node knows.
const COMPLETE_PATIENCE: Duration = Duration::from_secs(3);
/// How often it is looked whether the CVM has ended.
const LOOK: Duration = Duration::from_secs(1);
/// Pauses before a broken connection is made again: first and longest.
const REJOIN_PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(10));
/// Between attempts to write that the tenant is gone, when the disk refuses.
const STORE_PAUSE: Duration = Duration::from_millis(500);

/// Moves a tenant; the job says how it went.
pub(super) async fn run(manager: &Arc<Migrations>, job: &Arc<Job>, plan: Plan) {
    let mut cancelled = job.cancelled();
    let id = plan.record.id;
    // What a request of the tenant changes is in what is told of it, or is refused: the disk says which was first.
    if let Err(error) = manager.store.offer(plan.record.clone()).await {
        return job.fail(Step::Aborted, &error.to_string());
    }
    let asked = async {
        let (record, ears, mouth) = tokio::select! {
            asked = ask(manager, &plan) => asked?,
            () = asked_for(&mut cancelled) => return Err(NetError("it was cancelled".into())),
        };
        manager.store.offer(record.clone()).await.map_err(|error| NetError(error.to_string()))?;
        Ok((record, ears, mouth))
    };
    let connected = match asked.await {
        Ok((record, ears, mouth)) => {
            job.step(Step::Attesting);
            Source::connect(manager, job, plan, record, ears, mouth).await
        }
        Err(error) => Err(error),
    };
    match connected {
        Ok(source) => source.follow().await,
        Err(error) => {
            if let Err(error) = manager.store.step_out(id, OutEvent::Aborted(error.0.clone())).await {
                tracing::error!(%error, "the end of a migration is not kept; it is tried again");
                let event = OutEvent::Aborted("it ended before the tenant was parked".into());
                tokio::spawn(keep_at_last(manager.clone(), id, event));
            }
            job.fail(Step::Aborted, &error.0);
        }
    }
}

/// A migration whose guests talk to each other.
struct Source {
    manager: Arc<Migrations>,
    job: Arc<Job>,
    plan: Plan,
    record: Outgoing,
    mouth: Mouth,
    words: mpsc::Receiver<Result<DestinationWord, NetError>>,
    moving: Arc<Moving>,
    news: mpsc::Receiver<MoveNews>,
    parked: Option<Instant>,
    /// That it may be gone from now on is being written; the guest is held back until it is.
    marking: Option<JoinHandle<Result<Outgoing, StoreError>>>,
    /// What has to be written down before the tenant may go, here and at the other node.
    is_marked: bool,
    is_kept: bool,
    commit: Option<Commit>,
    /// When the guest gave it.
    given: Option<Instant>,
    delivery: Option<JoinHandle<Answer>>,
    /// The CVM here is gone, and the other node is told so.
    alone: bool,
    runs_there: bool,
    /// The guest has nothing more to give.
    finished: bool,
    /// When the other node said that it has everything. The guest here hears that too, unless its connection broke just then.
    complete_there: Option<Instant>,
    /// What the other node said before the guest ended it.
    refused: Option<String>,
    /// Connections that broke before the Commit was there, and how.
    broken: HashMap<u32, String>,
    rejoining: Arc<Mutex<HashSet<u32>>>,
}

/// Whether it goes on.
enum Flow {
    On,
    Over,
}

impl Source {
    /// Connects the guests.
    async fn connect(
        manager: &Arc<Migrations>,
        job: &Arc<Job>,
        plan: Plan,
        record: Outgoing,
        mut ears: Ears,
        mut mouth: Mouth,
    ) -> Result<Source, NetError> {
        let connect = async {
            mouth.say(&SourceWord::Begin).await?;
            let tickets = match ears.hear_soon().await? {
                DestinationWord::Ready(tickets) => tickets,
                other => return Err(refusal(other)),
            };
            let streams = streams(&plan, tickets).await?;
            let (tell, news) = mpsc::channel(MAX_NEWS);
            let mode = match plan.order.mode {
                Mode::Hybrid => MoveMode::Hybrid,
                Mode::PreCopy => MoveMode::PreCopy,
                Mode::PostCopy => MoveMode::PostCopy,
                Mode::StopAndCopy => MoveMode::StopAndCopy,
            };
            let bandwidth = plan.order.bandwidth;
            let options = MoveOptions { mode, bandwidth, held: true, ..MoveOptions::default() };
            let on_news = move |news| drop(tell.try_send(news));
            let moving = plan.departing.machine().cvm().send_tenant(streams, options, on_news);
            Ok((moving.map_err(|error| NetError(error.to_string()))?, news))
        };
        let (moving, news) = connect.await?;
        let words = ears.listen();
        Ok(Source {
            manager: manager.clone(),
            job: job.clone(),
            plan,
            record,
            mouth,
            words,
            moving: Arc::new(moving),
            news,
            parked: None,
            marking: None,
            is_marked: false,
            is_kept: false,
            commit: None,
            given: None,
            delivery: None,
            alone: false,
            runs_there: false,
            finished: false,
            complete_there: None,
            refused: None,
            broken: HashMap::new(),
            rejoining: Arc::default(),
        })
    }

    /// Until its end.
    async fn follow(mut self) {
        let mut cancelled = self.job.cancelled();
        let mut asked = false;
        let mut look = tokio::time::interval(LOOK);
        loop {
            let patience = match self.plan.order.mode {
                Mode::StopAndCopy => PARKED_PATIENCE_BASELINE,
                _ => PARKED_PATIENCE,
            };
            let late = self.parked.filter(|_| self.commit.is_none() && !asked).map(|since| since + patience);
            let flow = tokio::select! {
                // The guest's words first: what it has said about its tenant is what holds.
                biased;
                Some(news) = self.news.recv() => self.heard_guest(news).await,
                Some(word) = self.words.recv() => self.heard_node(word).await,
                marked = told(&mut self.marking) => self.marked(marked),
                answer = told(&mut self.delivery) => self.delivered(answer).await,
                () = asked_for(&mut cancelled), if !asked => {
                    asked = true;
                    self.moving.cancel();
                    Flow::On
                }
                () = until(late) => {
                    asked = true;
                    self.refused = Some("the other node was not ready in time while tasks were parked".into());
                    self.moving.cancel();
                    Flow::On
                }
                _ = look.tick() => self.look().await,
            };
            if let Flow::Over = flow {
                return self.mouth.close().await;
            }
        }
    }

    async fn heard_guest(&mut self, news: MoveNews) -> Flow {
        self.job.note(&news);
        match news {
            MoveNews::Parked => self.parked().await,
            MoveNews::Commit(commit, outstanding) => self.gone(commit, outstanding).await,
            MoveNews::Aborted(_, text) if self.commit.is_none() => return self.aborted(text).await,
            MoveNews::Complete(_) => {
                // It may be faster than the other node's disk.
                self.finished = true;
                return self.end().await;
            }
            MoveNews::Broken(channel, text) if self.commit.is_some() => self.rejoin(channel, &text),
            // It ends the migration, unless that is too late.
            MoveNews::Broken(channel, text) => drop(self.broken.insert(channel, text)),
            _ => {}
        }
        Flow::On
    }

    /// The gate closes, and the last of the records goes over. Meanwhile it is written that the tenant may be gone from now on: should this
    /// node end before it knows more, the tenant is lost, and not started again empty.
    async fn parked(&mut self) {
        if self.parked.replace(Instant::now()).is_some() {
            return;
        }
        let (manager, id) = (self.manager.clone(), self.record.id);
        let mark = async move { manager.store.step_out(id, OutEvent::Parked).await };
        self.marking = Some(tokio::spawn(mark));
        self.manager.stand(&self.plan.tenant, Standing::Parked);
        self.plan.departing.machine().set_moving(true);
        let roster = tunnel::hold(self.plan.departing.machine());
        let name = self.plan.tenant.name();
        let pending = self.manager.store.pending_of(name).unwrap_or_default();
        let mut programs = self.manager.services.programs(name);
        let services = self.manager.store.directory().services(name);
        programs.retain(|program| services.iter().any(|service| service.name == program.service));
        let word = Parked { pending, programs, roster: hex(&roster) };
        if let Err(error) = self.mouth.say(&SourceWord::Parked(word)).await {
            self.refused.get_or_insert(error.0);
            self.moving.cancel();
        }
    }

    /// The tenant may go as soon as both nodes have written down what they need for that.
    fn let_go(&self) {
        if self.is_marked && self.is_kept {
            self.moving.let_go();
        }
    }

    /// It is on the disk that the tenant may be gone: it may go.
    fn marked(&mut self, marked: Result<Outgoing, StoreError>) -> Flow {
        self.marking = None;
        match marked {
            Ok(_) => {
                self.is_marked = true;
                self.let_go();
            }
            Err(error) => {
                self.refused.get_or_insert(error.to_string());
                self.moving.cancel();
            }
        }
        Flow::On
    }

    /// **The tenant is gone from here.** Nothing is done before that is on the disk.
    async fn gone(&mut self, commit: Box<[u8; COMMIT_BYTES]>, outstanding_bytes: u64) {
        if self.commit.is_some() {
            return;
        }
        self.given = Some(Instant::now());
        // A guest that was not held back has not waited for this.
        self.parked().await;
        if let Some(marking) = self.marking.take() {
            let _ = marking.await;
        }
        let commit = Commit(commit);
        loop {
            let event = OutEvent::Gone { commit: commit.clone(), outstanding_bytes };
            match self.manager.store.step_out(self.record.id, event).await {
                Ok(_) => break,
                // What is not on the disk must not leave. The next start finds that the tenant may be gone: it is lost.
                Err(StoreError::Closed) => return std::future::pending().await,
                Err(StoreError::Edit(_)) => {
                    let _ = self.manager.store.step_out(self.record.id, OutEvent::Parked).await;
                }
                Err(error) => {
                    tracing::error!(%error, "a tenant that is gone can't be marked so; its Commit waits")
                }
            }
            tokio::time::sleep(STORE_PAUSE).await;
        }
        let sent = self.mouth.say(&SourceWord::Commit { commit: commit.clone() }).await;
        self.commit = Some(commit);
        self.job.step(Step::Gone);
        for (channel, text) in std::mem::take(&mut self.broken) {
            self.rejoin(channel, &text);
        }
        if sent.is_err() {
            self.deliver(false);
        }
    }

    /// Delivers the Commit by asking, until there is an answer.
    fn deliver(&mut self, alone: bool) {
        let (net, peer, id) = (self.plan.net.clone(), self.record.peer.clone(), self.record.id);
        let (commit, running) = (self.commit.clone(), self.runs_there);
        let old = self.delivery.replace(tokio::spawn(deliver(net, peer, id, commit, alone, running)));
        if let Some(old) = old {
            old.abort();
        }
    }

    async fn heard_node(&mut self, word: Result<DestinationWord, NetError>) -> Flow {
        match word {
            Ok(DestinationWord::Running { after_ns, .. }) if self.commit.is_some() => {
                self.runs_there(Duration::from_nanos(after_ns)).await;
                return self.end().await;
            }
            Ok(DestinationWord::Kept) => {
                self.is_kept = true;
                self.let_go();
            }
            Ok(DestinationWord::Complete) if self.commit.is_some() => {
                self.complete_there.get_or_insert_with(Instant::now);
            }
            Ok(DestinationWord::Refused { reason }) if self.commit.is_none() => {
                self.refused.get_or_insert(reason);
                self.moving.cancel();
            }
            Ok(_) => {}
            Err(error) if self.commit.is_none() => {
                self.refused.get_or_insert(error.0);
                self.moving.cancel();
            }
            // What is still to come is the guest's word.
            Err(_) if self.complete_there.is_some() => {}
            // Whether it runs there; and if so, for how long anything is needed from here.
            Err(_) if !self.alone => self.deliver(false),
            Err(_) => {}
        }
        Flow::On
    }

    /// The other node has it, since some time: requests and clients go there.
    async fn runs_there(&mut self, since: Duration) {
        if std::mem::replace(&mut self.runs_there, true) {
            return;
        }
        let away = Away { to: self.record.peer.clone(), id: self.record.id };
        self.manager.stand(&self.plan.tenant, Standing::Away(Arc::new(away)));
        if let Some(given) = self.given {
            self.job.handed(given.elapsed().saturating_sub(since));
        }
        self.job.step(Step::Running);
        self.plan.departing.machine().set_left();
        self.manager.runner.vacate(&self.plan.departing);
        self.manager.leave(&self.plan.tenant, self.plan.departing.machine());
        self.keep(OutEvent::Running).await;
    }

    async fn keep(&mut self, event: OutEvent) {
        if let Err(error) = self.manager.store.step_out(self.record.id, event).await {
            tracing::error!(%error, "a step of a migration is not kept; it is made again after a restart");
        }
    }

    /// The same for what must be on the disk before anything follows from it.
    async fn keep_first(&mut self, event: OutEvent) {
        keep_at_last(self.manager.clone(), self.record.id, event).await;
    }

    /// Over, if the other node has everything and says that it runs.
    async fn end(&mut self) -> Flow {
        if self.finished && self.runs_there { self.complete(None).await } else { Flow::On }
    }

    /// This node's part is done. `lost`: the other one had it, and lost it.
    async fn complete(&mut self, lost: Option<String>) -> Flow {
        self.keep(OutEvent::Complete).await;
        if let Some(delivery) = self.delivery.take() {
            delivery.abort();
        }
        self.plan.departing.machine().stop().await;
        match lost {
            None => self.job.step(Step::Complete),
            Some(reason) => self.job.fail(Step::Lost, &reason),
        }
        Flow::Over
    }

    async fn aborted(&mut self, text: String) -> Flow {
        tunnel::go_on(self.plan.departing.machine());
        self.plan.departing.machine().set_moving(false);
        self.manager.stand(&self.plan.tenant, Standing::Here);
        let said = self.refused.clone().unwrap_or_else(|| text.clone());
        let _ = self.mouth.say(&SourceWord::Aborted { reason: said }).await;
        // The other node may know better why; and when it has answered, the tenant can come again.
        let word = tokio::time::timeout(LAST_WORD, self.last_word()).await.ok().flatten();
        let word = word.filter(|_| !*self.job.cancelled().borrow());
        let reason = self.refused.take().or(word).unwrap_or(text);
        let event = OutEvent::Aborted(reason.clone());
        if let Err(error) = self.manager.store.step_out(self.record.id, event.clone()).await {
            tracing::error!(%error, "the end of a migration is not kept; it is tried again");
            tokio::spawn(keep_at_last(self.manager.clone(), self.record.id, event));
        }
        self.job.fail(Step::Aborted, &reason);
        Flow::Over
    }

    /// Why the other node ended it.
    async fn last_word(&mut self) -> Option<String> {
        loop {
            match self.words.recv().await? {
                Ok(DestinationWord::Refused { reason }) => return Some(reason),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }

    /// An answer to the Commit.
    async fn delivered(&mut self, answer: Answer) -> Flow {
        self.delivery = None;
        match answer {
            Answer::Running => {
                self.runs_there(Duration::ZERO).await;
                self.deliver(false);
                self.end().await
            }
            Answer::Complete => {
                self.runs_there(Duration::ZERO).await;
                self.complete(None).await
            }
            Answer::Lost(reason) => {
                self.runs_there(Duration::ZERO).await;
                self.complete(Some(reason)).await
            }
            // It ran there: what became of it since is that node's affair, and nothing of it is here.
            Answer::Unknown(_) if self.runs_there => self.complete(None).await,
            Answer::Unknown(reason) => self.over_lost(OutEvent::Unknown(reason.clone()), &reason).await,
        }
    }

    async fn lost(&mut self, reason: &str) -> Flow {
        if let Some(marking) = self.marking.take() {
            let _ = marking.await;
        }
        let _ = self.mouth.say(&SourceWord::Aborted { reason: reason.to_owned() }).await;
        self.over_lost(OutEvent::Ended(reason.to_owned()), reason).await
    }

    async fn over_lost(&mut self, event: OutEvent, reason: &str) -> Flow {
        self.keep_first(event).await;
        self.plan.departing.machine().stop().await;
        self.manager.lost(&self.plan.tenant).await;
        self.job.fail(Step::Lost, reason);
        Flow::Over
    }

    /// Whether its CVM still is there.
    async fn look(&mut self) -> Flow {
        if self.complete_there.is_some_and(|since| since.elapsed() > COMPLETE_PATIENCE) {
            self.runs_there(Duration::ZERO).await;
            return self.complete(None).await;
        }
        if !self.plan.departing.machine().has_ended() || self.alone {
            return Flow::On;
        }
        if self.commit.is_none() {
            return match self.parked {
                None => self.aborted("the CVM ended meanwhile".into()).await,
                // Nobody knows whether it was gone.
                Some(_) => self.lost("the CVM ended while the tenant was being handed over").await,
            };
        }
        // What was not fetched yet will not come: the other node has to know.
        self.alone = true;
        self.deliver(true);
        Flow::On
    }

    /// Makes a broken connection again, as long as it takes.
    fn rejoin(&self, channel: u32, text: &str) {
        tracing::info!(channel, text, "a connection of a migration broke; it is made again");
        let rejoining = self.rejoining.clone();
        if !rejoining.lock().unwrap_or_else(PoisonError::into_inner).insert(channel) {
            return;
        }
        let (net, peer, moving) =
            (self.plan.net.clone(), self.record.peer.clone(), Arc::downgrade(&self.moving));
        let id = self.record.id;
        tokio::spawn(async move {
            let mut pause = REJOIN_PAUSES.0;
            while moving.strong_count() > 0 {
                if let Ok(stream) = another(&*net, &peer, AskRejoin { id, channel }).await {
                    rejoining.lock().unwrap_or_else(PoisonError::into_inner).remove(&channel);
                    if let Some(moving) = moving.upgrade() {
                        // It waits for threads to end.
                        tokio::task::spawn_blocking(move || moving.rejoin(channel, stream));
                    }
                    return;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(REJOIN_PAUSES.1);
            }
        });
    }
}

/// Writes a step as soon as the disk takes it.
async fn keep_at_last(manager: Arc<Migrations>, id: crate::names::MigrationId, event: OutEvent) {
    while let Err(StoreError::Database(_) | StoreError::Io { .. }) =
        manager.store.step_out(id, event.clone()).await
    {
        tokio::time::sleep(STORE_PAUSE).await;
    }
}

async fn another(
    net: &dyn Net,
    peer: &PeerName,
    question: AskRejoin,
) -> Result<std::net::TcpStream, NetError> {
    let said = |error: serde_json::Error| NetError(error.to_string());
    let answer = net.ask(peer, REJOIN, serde_json::to_value(question).map_err(said)?).await?;
    let answer: RejoinTicket = serde_json::from_value(answer).map_err(said)?;
    let ticket = answer.ticket.ok_or_else(|| NetError("the migration is not there".into()))?;
    net.bare(&peer.url, ticket).await
}

/// What a task that runs beside has to tell.
async fn told<T>(task: &mut Option<JoinHandle<T>>) -> T {
    match task {
        Some(task) => match task.await {
            Ok(answer) => answer,
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// Comes back when somebody wants the end.
async fn asked_for(cancelled: &mut watch::Receiver<bool>) {
    // Without a sender nobody can.
    if cancelled.wait_for(|cancelled| *cancelled).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
