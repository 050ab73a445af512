//! Migrations as a node keeps them, and what two nodes say to each other about one: pure, no I/O.
//!
//! ```text
//! source        Offered --Gone--> Gone --Running--> Delivered --Complete--> Complete
//!                  |                \--Unknown-----> Lost        (the destination does not know it any more)
//!                  +--Aborted, Restarted----------> Aborted
//!
//! destination   Receiving --Staged--> Staged --Running--> Running --Complete--> Complete
//!                  |                    |                    +--Restarted, SourceLost--> Lost
//!                  +--------------------+--Failed, Restarted--> Failed
//! ```
//! Each state is durable before anything is done that needs it. `Gone`, with the Commit and the mark that says where the tenant is, is one
//! transaction, and the Commit leaves after it: from there on the source never starts the tenant again. `Restarted` is what a node tells
//! each of its migrations when it starts: its CVMs are gone then.

mod state;
mod words;

pub use state::{
    Away, Commit, InEvent, InState, Incoming, Lost, OutEvent, OutState, Outgoing, PeerName, StepError,
};
pub use words::{
    AskClient, AskCommit, AskRejoin, AskTunnel, ClientAnswer, CommitAnswer, DestinationWord, EndedCall,
    MAX_LANES, MAX_WORD_BYTES, Mode, MoveOrder, Offer, Parked, ProgramWord, RejoinTicket, SourceWord, Staged,
    Tickets, VERSION, bytes_of,
};
