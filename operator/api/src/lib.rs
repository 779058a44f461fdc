//! intermezzo-api
