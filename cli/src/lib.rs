//! intermezzo
