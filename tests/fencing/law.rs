//! What every resource does with every token, one call after the other.

use serde_json::Value;

use crate::resource::{Answer, Guard, NAME, Resource, Resources, http};

/// The highest token that there is.
const LAST: u64 = (1 << 53) - 1;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_write_is_taken_if_no_higher_token_was_seen() {
    let resources = Resources::start().await;
    for resource in resources.all() {
        // As texts 9 is above 10. In single precision, or as Lua prints numbers, the last three are one.
        let steps = [(9, true), (10, true), (9, false), (10, true), (LAST - 2, true), (LAST, true), (LAST - 1, false)];
        let mut value = String::new();
        for (step, (token, taken)) in steps.into_iter().enumerate() {
            let text = format!("write {step}");
            let answer = resource.write(Guard::Token, &token.to_string(), &text);
            assert_eq!(answer, if taken { Answer::Done } else { Answer::Refused }, "{resource}: {token} in step {step}");
            if taken {
                value = text;
            }
            assert_eq!(resource.value(Guard::Token), value, "{resource}: after step {step}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whoever_reads_with_a_token_shuts_earlier_holders_out() {
    let resources = Resources::start().await;
    for resource in resources.all() {
        assert_eq!(resource.read("1"), (Answer::Done, String::new()), "{resource}: there is nothing yet");
        assert_eq!(resource.write(Guard::Token, "1", "first holder"), Answer::Done, "{resource}");
        assert_eq!(resource.read("2"), (Answer::Done, "first holder".to_owned()), "{resource}");
        assert_eq!(resource.write(Guard::Token, "1", "too late"), Answer::Refused, "{resource}");
        assert_eq!(resource.read("1").0, Answer::Refused, "{resource}");
        assert_eq!(resource.value(Guard::Token), "first holder", "{resource}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_no_token_is_an_error_and_changes_nothing() {
    let resources = Resources::start().await;
    let numbers = ["0", "-1", "9007199254740992", "99999999999999999999"];
    let texts = ["", "x", "1e3", "1.5", "0x10", "+5", "3, 4", " 7 8"];
    let [redis, postgres, served] = resources.all();
    for token in numbers.iter().chain(&texts) {
        for resource in [&redis, &served] {
            let answer = resource.write(Guard::Token, token, "x");
            assert!(answer.is_error(), "{resource}: {token:?}: {answer:?}");
            assert!(resource.read(token).0.is_error(), "{resource}: {token:?}");
        }
    }
    // Anything else does not get so far as to be a bigint.
    for token in numbers.iter().chain(&["NULL"]) {
        let answer = postgres.write(Guard::Token, token, "x");
        assert!(answer.is_error(), "{token:?}: {answer:?}");
        assert!(postgres.read(token).0.is_error(), "{token:?}");
    }
    assert_eq!(resources.redis.cli(&["EXISTS", NAME]), "0");
    assert_eq!(resources.postgres.sql("SELECT count(*) FROM fenced"), "0");
    assert_eq!(served.value(Guard::Token), "");
    assert_eq!(served.write(Guard::Token, "1", "y"), Answer::Done, "nothing was seen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn refusals_say_what_was_wrong() {
    let resources = Resources::start().await;
    let [redis, _, served] = resources.all();
    let put = |headers: &str| {
        let (status, body) = http(resources.http, "PUT", "/document", headers, "value");
        (status, serde_json::from_str::<Value>(&body).unwrap_or_default())
    };
    let (status, body) = put("");
    assert_eq!((status, &body["error"]), (400, &"missing_token".into()), "{body}");
    let (status, body) = put("Fencing-Token: 33\r\nFencing-Token: 34\r\n");
    assert_eq!((status, &body["error"]), (400, &"bad_token".into()), "{body}");
    assert_eq!(put("Fencing-Token: 34\r\n").0, 204);
    let (status, body) = put("Fencing-Token: 33\r\n");
    assert_eq!((status, &body["error"]), (412, &"stale_token".into()), "{body}");
    assert_eq!((&body["token"], &body["highest"]), (&33.into(), &34.into()), "{body}");
    assert!(body["message"].as_str().is_some_and(|text| text.contains("33") && text.contains("34")), "{body}");
    assert_eq!(served.value(Guard::Token), "value");

    // The script tells the highest token too, exactly.
    assert_eq!(redis.write(Guard::Token, &LAST.to_string(), "value"), Answer::Done);
    let Resource::Redis { port } = redis else { panic!("{redis}") };
    assert_eq!(port, resources.redis.port);
    let script = crate::resource::example("fenced_set.lua");
    let reply = resources.redis.cli(&["--eval", script.to_str().unwrap(), NAME, ",", "33", "late"]);
    assert_eq!(reply, format!("0\n{LAST}"));
}
