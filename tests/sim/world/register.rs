//! The protected resource: the register that ships, one for each name.

use std::collections::BTreeMap;

use redlockd::engine::fencing::Token;
use redlockd::fenced::FencedRegister;

/// One for each name. Only the tokens matter here.
#[derive(Debug, Default)]
pub struct Register {
    names: BTreeMap<String, FencedRegister<()>>,
}

impl Register {
    /// Whether the write is taken.
    pub fn write(&mut self, name: &str, token: Token) -> bool {
        let register = self.names.entry(name.to_owned()).or_insert_with(|| FencedRegister::new(()));
        register.write(token, ()).is_ok()
    }
}
