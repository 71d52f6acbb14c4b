//! The gRPC face: [`service`] converts, calls and converts back; [`convert`] is all between messages and domain; [`status`]
//! all between failures and status codes; [`session`] is both for sessions; [`delivery`] takes a grant back that nobody received;
//! [`ending`] tells how a client ended its side; [`page_token`] says where a list goes on. Below them, [`server`] accepts connections,
//! [`routes`] finds whom a request is for, and [`plain`] carries messages in the form that nearly all of them have.

pub mod convert;
pub mod delivery;
pub mod ending;
pub mod page_token;
pub mod plain;
pub mod routes;
pub mod server;
pub mod service;
pub mod session;
pub mod status;
