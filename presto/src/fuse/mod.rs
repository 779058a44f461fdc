//! The mount: fuser's requests turned into the filter's operations. The only room that names fuser.
