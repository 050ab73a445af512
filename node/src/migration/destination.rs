//! The destination of a migration: takes a tenant's records and its memory, and goes on with it.

use super::accepting::{Ready, Words, accept, fail};
use super::line::{Mouth, PATIENCE, line};
use super::net::{Duplex, NetError};
use super::{
    AskCommit, AskRejoin, Commit, CommitAnswer, DestinationWord, InEvent, InState, Incoming, MAX_LANES,
    Migrations, Parked, ProgramWord, RejoinTicket, Room, SourceWord, Staged, admission, bytes_of, tunnel,
};
use crate::names::{Digest, EntityName, MigrationId};
use crate::runner::Arriving;
use crate::services::{Begin, Door};
use crate::store::StoreError;
use crate::tenants::{Standing, Tenant};
use nacre_vmm::migration::{MoveNews, Moving};
use nacre_vmm::tunnel::{Adopted, Roster};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// How long a staged CVM waits for its Commit once its source is out of reach. Then the tenant is lost, if it was gone from there.
pub(super) const STAGED_PATIENCE: Duration = Duration::from_secs(3600);
/// How long one who asks waits for the guest.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// How long what is on its way may take when the source's CVM is gone: then no more comes.
const REST_PATIENCE: Duration = Duration::from_secs(5);
/// Most calls under way that come with a tenant: those it had where it was, and where it was before.
const MAX_PENDING: usize = 1 << 16;
/// How often it is looked whether the CVM has ended.
const LOOK: Duration = Duration::from_secs(1);
/// Between attempts to write that the tenant is here, when the disk refuses.
const STORE_PAUSE: Duration = Duration::from_millis(500);

/// What others tell a migration to here, beside its line.
pub enum Order {
    /// The Commit, maybe once more; the source's CVM is gone if `alone`. Told once it has been dealt with.
    Commit {
        /// What activates the guest.
        commit: Option<Commit>,
        /// Nothing more can be fetched.
        alone: bool,
        /// The tenant runs, or it will not.
        told: oneshot::Sender<()>,
    },
    /// Another connection in place of one that broke.
    Rejoin(u32, std::net::TcpStream),
    /// The node stops: whose tenant still runs at the source has to do without.
    Leave,
}

/// Takes a tenant that another node brings.
pub async fn attend(manager: Arc<Migrations>, from: Digest, stream: Box<dyn Duplex>) {
    let (mut ears, mut mouth) = line(stream);
    // Before a word is read: each may be long.
    let Ok(reading) = manager.reading.clone().try_acquire_owned() else {
        let reason = "more migrations are offered to that node at once than it reads; try again".to_owned();
        let _ = mouth.say(&DestinationWord::Refused { reason }).await;
        return;
    };
    let accepted = match ears.hear_soon().await {
        Ok(SourceWord::Offer(offer)) => accept(&manager, (from, reading), *offer, ears, &mut mouth).await,
        Ok(_) => Err("the first word is no offer; update the older node".to_owned()),
        Err(error) => Err(error.0),
    };
    match accepted {
        Ok(ready) => Arrival::new(manager, ready, mouth).follow().await,
        Err(reason) => {
            tracing::info!(reason, "a migration to here is refused");
            // Who brought it may have gone.
            let _ = mouth.say(&DestinationWord::Refused { reason }).await;
        }
    }
}

/// A tenant that comes.
struct Arrival {
    manager: Arc<Migrations>,
    id: MigrationId,
    staged: Staged,
    listeners: HashMap<EntityName, Arc<Door>>,
    programs: Vec<ProgramWord>,
    roster: Option<Roster>,
    /// Programs that came, until their services go on.
    adopted: Vec<Adopted>,
    arriving: Arriving,
    moving: Arc<Moving>,
    news: mpsc::Receiver<MoveNews>,
    words: Words,
    mouth: Mouth,
    orders: mpsc::Receiver<Order>,
    /// Its last records are here: it can be activated.
    staged_fully: bool,
    committed: Option<Instant>,
    runs: bool,
    /// The source is out of reach since.
    unreached: Option<Instant>,
    /// The source's CVM is gone since.
    alone: Option<Instant>,
    told: Vec<oneshot::Sender<()>>,
    room: Option<Room>,
}

enum Flow {
    On,
    Over,
}

impl Arrival {
    fn new(manager: Arc<Migrations>, ready: Ready, mouth: Mouth) -> Self {
        let Ready { id, staged, listeners, arriving, moving, news, words, room } = ready;
        let (tell, orders) = mpsc::channel(16);
        {
            let mut arrivals = manager.arrivals();
            if manager.is_stopping() {
                // Whoever told the others may not have found this one.
                let _ = tell.try_send(Order::Leave);
            }
            arrivals.insert(id, tell);
        }
        Self {
            manager,
            id,
            staged,
            listeners,
            programs: Vec::new(),
            roster: None,
            adopted: Vec::new(),
            arriving,
            moving: Arc::new(moving),
            news,
            words,
            mouth,
            orders,
            staged_fully: false,
            committed: None,
            runs: false,
            unreached: None,
            alone: None,
            told: Vec::new(),
            room: Some(room),
        }
    }

    async fn follow(mut self) {
        let mut look = tokio::time::interval(LOOK);
        loop {
            let flow = tokio::select! {
                biased;
                // The last records before what the guest makes of them.
                Some(word) = self.words.recv() => self.heard_source(word).await,
                Some(news) = self.news.recv() => self.heard_guest(news).await,
                Some(order) = self.orders.recv() => self.ordered(order).await,
                _ = look.tick() => self.look().await,
            };
            if let Flow::Over = flow {
                break;
            }
        }
        self.manager.arrivals().remove(&self.id);
        self.manager.arrival_over.notify_waiters();
        self.mouth.close().await;
    }

    async fn heard_source(&mut self, word: Result<SourceWord, NetError>) -> Flow {
        match word {
            Ok(SourceWord::Parked(parked)) if !self.staged_fully => {
                self.moving.hurry();
                if let Err(reason) = self.parked(parked).await {
                    return self.failed(reason).await;
                }
                // A line that is broken shows when it is listened to.
                let _ = self.mouth.say(&DestinationWord::Kept).await;
            }
            Ok(SourceWord::Commit { commit }) => self.commit(&commit).await,
            Ok(SourceWord::Aborted { reason }) if self.committed.is_none() => {
                return self.failed(reason).await;
            }
            Ok(_) => {}
            Err(error) if !self.staged_fully => return self.failed(error.0).await,
            Err(_) => drop(self.unreached.get_or_insert_with(Instant::now)),
        }
        Flow::On
    }

    /// The last of its records: durable before the Commit can be used.
    async fn parked(&mut self, parked: Parked) -> Result<(), String> {
        let Parked { pending, programs, roster } = parked;
        if pending.len() > MAX_PENDING || programs.len() > self.staged.services.len() {
            return Err("the last records do not fit the first; update the older node".into());
        }
        let roster = bytes_of(&roster).ok_or("the roster is no bytes; update the older node")?;
        self.roster = Some(tunnel::roster(&roster)?);
        self.programs = programs;
        self.manager.store.finish_staging(self.id, pending).await.map_err(|error| error.to_string())?;
        self.staged_fully = true;
        Ok(())
    }

    async fn commit(&mut self, commit: &Commit) {
        if !self.staged_fully {
            return;
        }
        if let Some(roster) = self.roster.take() {
            match self.manager.adopt(&self.staged.tenant.uuid, self.arriving.machine(), &roster) {
                Ok(adopted) => self.adopted = adopted,
                // The tenant comes all the same; what it had open ends.
                Err(error) => tracing::error!(error, "what a tenant had open does not go on"),
            }
        }
        if self.moving.commit(&commit.0).is_ok() {
            self.committed.get_or_insert_with(Instant::now);
        }
    }

    async fn heard_guest(&mut self, news: MoveNews) -> Flow {
        match news {
            MoveNews::Running(_) if self.committed.is_some() => self.running().await,
            MoveNews::Complete(_) if self.runs => {
                self.keep(InEvent::Complete).await;
                self.arriving.machine().set_moving(false);
                if let Some(tenant) = self.tenant() {
                    tenant.expect_memory(false);
                }
                // The source hears it from its own guest, too.
                let _ = self.mouth.say(&DestinationWord::Complete).await;
                return Flow::Over;
            }
            MoveNews::Aborted(_, text) if !self.runs => return self.failed(text).await,
            MoveNews::Broken(channel, text) => {
                tracing::info!(channel, text, "a connection of a migration broke; the source makes it again");
            }
            _ => {}
        }
        Flow::On
    }

    /// The tenant, unless it was removed.
    fn tenant(&self) -> Option<Arc<Tenant>> {
        self.manager.tenants.same(&self.staged.tenant.name, &self.staged.tenant.uuid)
    }

    /// Writes down how it ended, however long the disk refuses that: a tenant that is lost must not begin anew, and one that has come whole not be lost
    /// by a restart.
    async fn keep(&mut self, event: InEvent) {
        loop {
            match self.manager.store.step_in(self.id, event.clone()).await {
                Ok(_) => return,
                Err(StoreError::Closed) => return std::future::pending().await,
                Err(error @ StoreError::Edit(_)) => {
                    return tracing::error!(%error, "a step of a migration is not kept");
                }
                Err(error) => tracing::error!(%error, "a step of a migration waits for the disk"),
            }
            tokio::time::sleep(STORE_PAUSE).await;
        }
    }

    /// The guest runs: the tenant is this node's, first on the disk.
    async fn running(&mut self) {
        let ran = Instant::now();
        let took = self.committed.map(|since| ran - since).unwrap_or_default();
        while let Err(error) = self.manager.store.step_in(self.id, InEvent::Running).await {
            tracing::error!(%error, "a tenant that has come can't be kept; its clients wait");
            if matches!(error, StoreError::Closed) {
                return std::future::pending().await;
            }
            tokio::time::sleep(STORE_PAUSE).await;
        }
        self.runs = true;
        let record = self.staged.tenant.clone();
        self.arriving.machine().set_moving(true);
        let Some(tenant) = self.manager.tenants.welcome(&record) else { return };
        tenant.expect_memory(true);
        self.manager.runner.settle(&tenant, &self.arriving);
        // Removed in the moment before: then nobody else ends what is here of it.
        if self.manager.store.directory().tenant(record.name.as_str()).as_deref() != Some(&record) {
            self.manager.tenants.retire(&tenant);
            return self.manager.runner.forget(&tenant).await;
        }
        self.manager.stand(&tenant, Standing::Here);
        let (took_ns, after_ns) = (took.as_nanos() as u64, ran.elapsed().as_nanos() as u64);
        let word = DestinationWord::Running { took_ns, after_ns };
        // If the line is broken the source asks.
        let _ = self.mouth.say(&word).await;
        for told in self.told.drain(..) {
            let _ = told.send(());
        }
        let services = self.manager.store.directory().services(&record.name);
        self.manager.services.stop_others(&record.name, &services).await;
        for service in services {
            let begin = match self.programs.iter().find(|word| word.service == service.name) {
                Some(ProgramWord { over: Some(end), .. }) => Begin::Over(end.clone()),
                Some(ProgramWord { program: Some(program), .. }) => {
                    let adopted = self.adopted.iter().position(|one| one.id.0 == *program);
                    adopted.map_or(Begin::Fresh, |place| Begin::Arrived(self.adopted.swap_remove(place)))
                }
                _ => Begin::Fresh,
            };
            let listener = self.listeners.remove(&service.name);
            self.manager.services.start(&tenant, service, listener, begin).await;
        }
        tracing::info!(tenant = record.name.as_str(), id = %self.id, "a tenant has come");
    }

    async fn ordered(&mut self, order: Order) -> Flow {
        match order {
            Order::Commit { commit: None, alone: true, .. } if !self.runs && self.committed.is_none() => {
                return self.failed("the source ended before the tenant was gone from there".into()).await;
            }
            Order::Commit { commit, alone, told } => {
                if let Some(commit) = commit.filter(|_| !self.runs) {
                    self.commit(&commit).await;
                }
                if alone {
                    self.alone.get_or_insert_with(Instant::now);
                }
                match self.runs {
                    true => drop(told.send(())),
                    false => self.told.push(told),
                }
            }
            Order::Rejoin(channel, stream) => {
                let moving = self.moving.clone();
                // It waits for threads to end.
                tokio::task::spawn_blocking(move || moving.rejoin(channel, stream));
            }
            Order::Leave if !self.staged_fully => return self.failed(admission::STOPPING.into()).await,
            // It may be gone from there.
            Order::Leave => {}
        }
        Flow::On
    }

    /// Whether what it waits for can still come.
    async fn look(&mut self) -> Flow {
        let ended = self.arriving.machine().has_ended();
        if !self.runs {
            if ended {
                return self.failed("the CVM ended before the tenant ran".into()).await;
            }
            if self.unreached.is_some_and(|since| since.elapsed() > STAGED_PATIENCE)
                && self.committed.is_none()
            {
                return self.failed("the source is out of reach for too long".into()).await;
            }
            return Flow::On;
        }
        if ended {
            return self.lost("its CVM ended before all memory had come").await;
        }
        if self.alone.is_some_and(|since| since.elapsed() > REST_PATIENCE) {
            return self.lost("its source ended before all memory had come").await;
        }
        Flow::On
    }

    async fn failed(&mut self, reason: String) -> Flow {
        tracing::info!(reason, id = %self.id, "a migration to here failed");
        self.moving.cancel();
        self.arriving.machine().stop().await;
        fail(&self.manager, self.id, &reason).await;
        // When the source hears of it the tenant can come again.
        (self.listeners, self.room) = (HashMap::new(), None);
        let _ = self.mouth.say(&DestinationWord::Refused { reason }).await;
        Flow::Over
    }

    async fn lost(&mut self, reason: &str) -> Flow {
        let tenant = self.tenant();
        let reason =
            if tenant.is_some() { reason } else { "the tenant was removed before all memory had come" };
        self.keep(InEvent::SourceLost(reason.to_owned())).await;
        if let Some(tenant) = tenant {
            self.manager.lost(&tenant).await;
            tenant.expect_memory(false);
        }
        Flow::Over
    }
}

impl Migrations {
    /// What was lost of a tenant is shown as lost, and its CVM ends.
    pub(super) async fn lost(&self, tenant: &Arc<Tenant>) {
        crate::metrics::lost_tenant();
        let Some(lost) = self.store.directory().lost(tenant.name()) else {
            self.runner.abandon(tenant).await;
            // Who is elsewhere never begins anew here.
            if self.store.directory().away(tenant.name()).is_none() {
                self.stand(tenant, Standing::Here);
            }
            return;
        };
        tracing::error!(tenant = tenant.name().as_str(), reason = lost.reason, "a tenant's memory is lost");
        for service in self.store.directory().services(tenant.name()) {
            if lost.services.contains(&service.name) {
                self.services.start(tenant, service, None, Begin::Lost(lost.reason.clone())).await;
            }
        }
        self.runner.abandon(tenant).await;
        self.stand(tenant, Standing::Here);
    }

    /// A source asks how it stands, and gives the Commit once more.
    ///
    /// # Errors
    /// The store's.
    pub async fn answer_commit(&self, from: Digest, question: AskCommit) -> Result<CommitAnswer, StoreError> {
        let known = |record: Option<Incoming>| record.filter(|record| record.from == from);
        let Some(record) = known(self.store.incoming_of(question.id)?) else {
            return Ok(CommitAnswer::Unknown);
        };
        let order = self.arrivals().get(&question.id).cloned();
        if let (Some(order), false) = (order, record.state.is_over()) {
            let (told, tell) = oneshot::channel();
            let asked = Order::Commit { commit: question.commit, alone: question.alone, told };
            if order.send(asked).await.is_ok() {
                // Dropped when it ends otherwise; the store says how.
                let _ = tokio::time::timeout(ANSWER_PATIENCE, tell).await;
            }
        }
        Ok(match known(self.store.incoming_of(question.id)?).map(|record| record.state) {
            None | Some(InState::Failed { .. }) => CommitAnswer::Unknown,
            Some(InState::Receiving | InState::Staged) => CommitAnswer::Waiting,
            Some(InState::Running) => CommitAnswer::Running,
            Some(InState::Complete) => CommitAnswer::Complete,
            Some(InState::Lost { reason }) => CommitAnswer::Lost { reason },
        })
    }

    /// A source wants another connection in place of one that broke.
    ///
    /// # Errors
    /// The store's.
    pub fn answer_rejoin(&self, from: Digest, question: AskRejoin) -> Result<RejoinTicket, StoreError> {
        let known = self.store.incoming_of(question.id)?.is_some_and(|record| record.from == from);
        let order = self.arrivals().get(&question.id).cloned().filter(|_| known);
        let fits = (question.channel as usize) < MAX_LANES + 2;
        let (Some(order), Some(net), true) = (order, &self.net, fits) else {
            return Ok(RejoinTicket { ticket: None });
        };
        let Ok((ticket, stream)) = net.expect(from, PATIENCE) else {
            return Ok(RejoinTicket { ticket: None });
        };
        tokio::spawn(async move {
            if let Ok(stream) = stream.await {
                // An arrival that is over needs none.
                let _ = order.send(Order::Rejoin(question.channel, stream)).await;
            }
        });
        Ok(RejoinTicket { ticket: Some(ticket) })
    }
}
