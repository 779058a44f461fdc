//! intermezzo-tests
