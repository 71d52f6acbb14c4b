//! The scripts on a server in memory: Lua 5.1 as in Redis, and Redis's conversions between Lua and replies.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use fred::util::sha1_hash;
use mlua::{Function, Lua, LuaOptions, Result, StdLib, Table, Value, Variadic};
use redlockd::node::script::{Raw, Scripts};

use super::data::{Answer, Data};

thread_local! {
    /// One interpreter serves all servers of a thread: the script keeps nothing between two calls.
    static INTERPRETER: Interpreter = Interpreter::new().unwrap();
}

struct Interpreter {
    lua: Lua,
    scripts: Arc<Scripts>,
    /// Batch and free, compiled once.
    compiled: [Function; 2],
    execute: Function,
    /// The server that runs the script now.
    data: Rc<RefCell<Data>>,
}

/// What a server answers to a script; `Err` is an error of the whole call.
type Answered = std::result::Result<Raw, String>;

pub fn scripts() -> Arc<Scripts> {
    INTERPRETER.with(|interpreter| interpreter.scripts.clone())
}

/// Of a script's text.
pub fn hash(text: &str) -> String {
    let known = scripts();
    let known = [&known.batch, &known.free].into_iter().find(|script| script.text == text);
    known.map_or_else(|| sha1_hash(text), |script| script.hash.to_string())
}

/// Runs one of the scripts that ship.
pub fn run(data: &mut Data, hash: &str, keys: &[Vec<u8>], args: &[Vec<u8>]) -> Answered {
    let known = scripts();
    let which = [&known.batch, &known.free].iter().position(|script| *script.hash == *hash).expect("a script that ships");
    // One operation by itself is carried out, and only its answer is lost: nobody asks a third time for what fails alone.
    let half = match (which, keys.len()) {
        (0, keys) => keys + 2,
        (_, 1) => 2,
        (_, _) => 1,
    };
    data.begin_script(half);
    let answered = with_interpreter(data, |interpreter| interpreter.run(&interpreter.compiled[which], keys, args));
    if data.end_script() { Err("ERR Error running script: half way".to_owned()) } else { answered }
}

/// Runs any script.
pub fn eval(data: &mut Data, script: &str, args: &[&[u8]]) -> Answered {
    data.begin_script(0);
    with_interpreter(data, |interpreter| {
        let script = interpreter.lua.load(script).set_name("@user_script").into_function()?;
        interpreter.run(&script, &[], &args.iter().map(|arg| arg.to_vec()).collect::<Vec<_>>())
    })
}

fn with_interpreter(data: &mut Data, work: impl FnOnce(&Interpreter) -> Result<Answered>) -> Answered {
    INTERPRETER.with(|interpreter| {
        interpreter.data.swap(&RefCell::new(std::mem::take(data)));
        let reply = work(interpreter);
        *data = interpreter.data.take();
        reply.unwrap()
    })
}

impl Interpreter {
    fn new() -> Result<Self> {
        let lua = Lua::new_with(StdLib::STRING | StdLib::TABLE | StdLib::MATH, LuaOptions::default())?;
        let data = Rc::new(RefCell::new(Data::default()));
        let server = data.clone();
        let command = lua.create_function(move |lua, words: Variadic<Value>| {
            let outcome = words_of(&words).and_then(|words| server.borrow_mut().command(&words));
            to_lua(lua, outcome)
        })?;
        let sha1 = lua.create_function(|_, text: mlua::LuaString| Ok(sha1_hash(&text.to_string_lossy())))?;
        let execute = lua.load(include_str!("redis.lua")).set_name("@redis.lua").call((command, sha1))?;
        let scripts = Arc::new(Scripts::hashed_by(sha1_hash));
        let compile = |script: &str| lua.load(script).set_name("@user_script").into_function();
        let compiled = [compile(scripts.batch.text)?, compile(scripts.free.text)?];
        Ok(Self { lua, scripts, compiled, execute, data })
    }

    fn run(&self, script: &Function, keys: &[Vec<u8>], args: &[Vec<u8>]) -> Result<Answered> {
        for (name, words) in [("KEYS", keys), ("ARGV", args)] {
            let words = words.iter().map(|word| self.lua.create_string(word)).collect::<Result<Vec<_>>>()?;
            self.lua.globals().raw_set(name, self.lua.create_sequence_from(words)?)?;
        }
        let reply: Value = self.execute.call(script)?;
        match reply.as_table().map(|table| table.raw_get("err")) {
            Some(Ok(Value::String(error))) => Ok(Err(error.to_string_lossy())),
            _ => raw(reply).map(Ok),
        }
    }
}

/// The words of a command: strings and numbers. Servers disagree about the digits of a fraction, so no script may need them.
fn words_of(words: &[Value]) -> std::result::Result<Vec<Vec<u8>>, String> {
    if words.is_empty() {
        return Err("ERR Please specify at least one argument for this redis.call() call".to_owned());
    }
    let word = |word: &Value| match word {
        Value::String(text) => Ok(text.as_bytes().to_vec()),
        Value::Integer(number) => Ok(number.to_string().into_bytes()),
        Value::Number(number) => Ok(number.to_string().into_bytes()),
        _ => Err("ERR Lua redis lib command arguments must be strings or integers".to_owned()),
    };
    words.iter().map(word).collect()
}

fn to_lua(lua: &Lua, outcome: std::result::Result<Answer, String>) -> Result<Value> {
    Ok(match outcome {
        Ok(Answer::Nil) => Value::Boolean(false),
        // A Lua number is a double: long integers lose their last digits here, as on a server.
        Ok(Answer::Integer(number)) => Value::Number(number as f64),
        Ok(Answer::Bulk(bytes)) => Value::String(lua.create_string(bytes)?),
        Ok(Answer::Status(status)) => Value::Table(lua.create_table_from([("ok", status)])?),
        Ok(Answer::Array(entries)) => {
            let entries = entries.iter().map(|bytes| lua.create_string(bytes)).collect::<Result<Vec<_>>>()?;
            Value::Table(lua.create_sequence_from(entries)?)
        }
        Ok(Answer::Texts(texts)) => {
            let nothing = || Ok(Value::Boolean(false));
            let text = |text: Option<Vec<u8>>| text.map_or_else(nothing, |text| lua.create_string(text).map(Value::String));
            Value::Table(lua.create_sequence_from(texts.into_iter().map(text).collect::<Result<Vec<_>>>()?)?)
        }
        Ok(Answer::Counts(counts)) => {
            let table = lua.create_table()?;
            for (name, number) in counts {
                table.raw_push(lua.create_string(name)?)?;
                table.raw_push(number as f64)?;
            }
            Value::Table(table)
        }
        Ok(Answer::Scanned(next, entries)) => {
            let entries = entries.iter().map(|bytes| lua.create_string(bytes)).collect::<Result<Vec<_>>>()?;
            let parts = [Value::String(lua.create_string(next.to_string())?), Value::Table(lua.create_sequence_from(entries)?)];
            Value::Table(lua.create_sequence_from(parts)?)
        }
        Err(error) => Value::Table(lua.create_table_from([("err", error)])?),
    })
}

/// A list ends at the first nil in it.
fn list(table: &Table) -> Result<Vec<Raw>> {
    let mut entries = Vec::new();
    loop {
        match table.raw_get(entries.len() + 1)? {
            Value::Nil => return Ok(entries),
            value => entries.push(raw(value)?),
        }
    }
}

fn raw(value: Value) -> Result<Raw> {
    Ok(match value {
        Value::String(bytes) => Raw::Bytes(bytes.as_bytes().as_ref().into()),
        Value::Boolean(true) => Raw::Integer(1),
        Value::Integer(number) => Raw::Integer(number),
        Value::Number(number) => Raw::Integer(number as i64),
        Value::Table(table) => match (table.raw_get("err")?, table.raw_get("ok")?) {
            (Value::String(text), _) | (_, Value::String(text)) => Raw::Bytes(text.as_bytes().as_ref().into()),
            _ => Raw::List(list(&table)?),
        },
        _ => Raw::Nil,
    })
}
