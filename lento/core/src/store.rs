//! Where the core keeps what must survive: ordered tables of bytes inside one transaction of the shell.
//!
//! The shell opens a transaction, feeds inputs, commits, then runs the outputs. A crash may lose the newest commits up
//! to the last durable one ([`crate::io::Output::Sync`]); the KML and the peers' logs bring them back.

/// The tables. The number is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// Single values: replica, positions, marks.
    Meta = 0,
    /// Local tree (what the lower tree holds as of the last record read): objects.
    LocalObject = 1,
    /// Local tree: entries.
    LocalEntry = 2,
    /// Local tree: names of each object.
    LocalName = 3,
    /// Lower identity -> object.
    Handle = 4,
    /// Base tree (the server's truth at this node's position; clients only): objects.
    BaseObject = 5,
    /// Base tree: entries.
    BaseEntry = 6,
    /// Base tree: names of each object.
    BaseName = 7,
    /// The CML: own records without a verdict.
    Pending = 8,
    /// Facets that pending records touch.
    PendingFacet = 9,
    /// Facets in which the lower tree still differs from base.
    Dirty = 10,
    /// Server: the log by position.
    Log = 11,
    /// Server: one row for each Replicator.
    Replicator = 12,
    /// Server: last record judged for each (replica, incarnation).
    Judged = 13,
    /// Server: object of a client -> object it was unified with.
    Alias = 14,
    /// Server: conflicts by position.
    Conflict = 15,
    /// Lower files that presto keeps in limbo, with their objects.
    Limbo = 16,
    /// Server: records that get a verdict other than "accepted", until it is in the KML.
    Verdict = 17,
    /// Client: the newest records of the server's log, by position, for a server that has lost them.
    Tail = 18,
    /// Server: files that a power cut may have torn, by object.
    Torn = 19,
    /// Server: who decides about each conflict and what is kept of it, by position.
    Standing = 20,
    /// Server: removals that wait for a person, by node.
    Held = 21,
    /// Client: objects of the local tree whose content is not here.
    Missing = 22,
    /// Server: what was, by position.
    History = 23,
}

impl Table {
    /// All tables, in the order of their numbers.
    pub const ALL: [Table; 24] = [
        Table::Meta,
        Table::LocalObject,
        Table::LocalEntry,
        Table::LocalName,
        Table::Handle,
        Table::BaseObject,
        Table::BaseEntry,
        Table::BaseName,
        Table::Pending,
        Table::PendingFacet,
        Table::Dirty,
        Table::Log,
        Table::Replicator,
        Table::Judged,
        Table::Alias,
        Table::Conflict,
        Table::Limbo,
        Table::Verdict,
        Table::Tail,
        Table::Torn,
        Table::Standing,
        Table::Held,
        Table::Missing,
        Table::History,
    ];
}

/// The store failed or holds what the core never wrote; the volume stops with this text.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("store: {0}")]
pub struct StoreError(pub String);

/// Row as bytes.
pub type Row = (Vec<u8>, Vec<u8>);

/// One open transaction.
pub trait Store {
    /// Value of a key.
    ///
    /// # Errors
    /// The database's own.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Up to `limit` rows with `key >= from`, in key order.
    ///
    /// # Errors
    /// The database's own.
    fn scan(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, StoreError>;

    /// The last row with `key < before`.
    ///
    /// # Errors
    /// The database's own.
    fn before(&self, table: Table, before: &[u8]) -> Result<Option<Row>, StoreError>;

    /// Number of rows, without counting them.
    ///
    /// # Errors
    /// The database's own.
    fn len(&self, table: Table) -> Result<u64, StoreError>;

    /// Inserts or replaces.
    ///
    /// # Errors
    /// The database's own.
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError>;

    /// Removes; absent is fine.
    ///
    /// # Errors
    /// The database's own.
    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError>;

    /// Removes every row.
    ///
    /// # Errors
    /// The database's own.
    fn clear(&mut self, table: Table) -> Result<(), StoreError>;
}
