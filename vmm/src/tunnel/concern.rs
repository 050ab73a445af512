//! [`Concern`]: whom a message to a guest concerns, which decides where it goes when the tenant moves.

use nacre_abi::message::Kind;

/// Whom a message to a guest concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    /// The migration: the guest of this very CVM.
    Migration,
    /// Connections, calls and modules: the tables that numbered them, wherever the guest is.
    Origin,
    /// The streams of programs: the host where the tenant is.
    Program,
    /// This host and this CVM.
    Here,
}

impl Concern {
    /// Whom messages of this kind concern.
    pub const fn of(kind: Kind) -> Concern {
        match kind {
            Kind::MigrateSend
            | Kind::MigrateReceive
            | Kind::MigrateCancel
            | Kind::MigrateCommit
            | Kind::MigrateEvent
            | Kind::MigrateMemory
            | Kind::MigrateRejoined => Concern::Migration,
            Kind::SocketOpen
            | Kind::SocketAccepted
            | Kind::SocketRefused
            | Kind::SocketData
            | Kind::SocketEnd
            | Kind::SocketCredit
            | Kind::SocketClose
            | Kind::SocketReset
            | Kind::ModuleCreate
            | Kind::ModuleCode
            | Kind::ModuleLoad
            | Kind::ModuleLoaded
            | Kind::ModuleDrop
            | Kind::CallStart
            | Kind::CallData
            | Kind::CallCancel
            | Kind::CallOutput
            | Kind::CallDone => Concern::Origin,
            Kind::StreamData
            | Kind::StreamEnd
            | Kind::Credit
            | Kind::StreamClosed
            | Kind::Export
            | Kind::ProgramDrop
            | Kind::ProgramStart => Concern::Program,
            _ => Concern::Here,
        }
    }
}
