//! The gRPC face: [`service`] converts, calls and converts back; [`convert`] is all between messages and domain; [`status`]
//! all between failures and status codes; [`delivery`] takes a grant back that nobody received; [`page_token`] says where a list
//! goes on.

pub mod convert;
pub mod delivery;
pub mod page_token;
pub mod service;
pub mod status;
