//! lento
