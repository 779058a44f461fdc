//! Bytes of the channel to Presto: the socket and the conversions of its messages. Routing is `req_dispatcher`'s.

pub mod convert;
pub mod seqpacket;
