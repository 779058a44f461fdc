//! Lento: the cache manager and file server. One agent per node, server for some volumes, client for others.
//!
//! This crate is the shell: sockets, files, tasks and clocks. What to do is decided by `lento-core`; the shell feeds it
//! inputs, commits its store and runs its outputs in order. The rooms bear the names of the original: the upcall wheel
//! reads the channel, the request dispatcher routes, the request handler handles, the journal unpacks and passes to
//! the volume's CML.

pub mod admin;
pub mod agent;
mod asked;
pub mod channel;
pub mod clock;
pub mod content;
pub mod control;
pub mod desired;
pub mod dialer;
pub mod fetch_service;
pub mod history;
pub mod jobs;
pub mod journal;
pub mod link;
pub mod listing;
pub mod manifests;
pub mod meters;
pub mod metrics;
pub mod options;
pub mod program;
pub mod progress;
pub mod random;
pub mod replication;
pub mod req_dispatcher;
pub mod req_handler;
pub mod rooms;
pub mod stage_names;
pub mod stage_service;
pub mod store;
pub mod tls;
pub mod upcall_wheel;
pub mod volume;
pub mod volume_task;
pub mod wire;
