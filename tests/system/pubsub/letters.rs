//! Dead letters: ours in a topic, and the subscription's own dead-letter policy beside them; what `check` and `status` say.

use onceward_test_servers::pubsub::Pubsub;
use onceward_test_servers::redis::Redis;
use onceward_test_support::effects::Kind;
use onceward_test_support::orders;
use onceward_test_support::process::until;
use serde_json::json;

use super::setup;
use super::subscription::Subscription;
use crate::pair::{LONG, Waiting, scene, stop, with_redis};

#[test]
fn dead_letters_go_to_a_topic_and_check_and_status_see_both() {
    let (spare, dead) =
        (Subscription::create("parts-spare", &json!({})), Subscription::create("parts-dead", &json!({})));
    let policy = json!({"deadLetterTopic": spare.topic, "maxDeliveryAttempts": 5});
    let properties = json!({"deadLetterPolicy": policy, "messageRetentionDuration": "345600s"});
    let subscription = Subscription::create("parts", &properties);
    let lines = [orders::order("well", &json!({})), orders::order("ill", &json!({"do": "permanent"}))];
    subscription.publish(&lines);
    let setup = with_redis(setup(&subscription), Redis::shared())
        .set("scope", "pubsub-parts")
        .set("policy.on_exhausted", "dead-letter")
        .set("dead_letter.to", dead.topic.as_str());
    let scene = scene(&setup);
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(0), "{checked:#?}");
    for said in ["subscriptions/parts", "after 5 deliveries", "topics/parts-dead"] {
        assert!(checked.stdout.contains(said), "{said}: {checked:#?}");
    }

    let running = scene.run();
    until("an empty subscription", LONG, || subscription.is_empty());
    stop(vec![running]);
    assert_eq!(scene.count(Kind::Effect).into_keys().collect::<Vec<_>>(), ["well"]);
    assert_eq!((dead.depth(), spare.depth()), ((1, 0), (0, 0)));
    let status = scene.execute(&["status", "onceward.toml"]);
    assert_eq!(status.code(), Some(0), "{status:#?}");

    let nowhere = format!("{}-nowhere", subscription.full_name);
    scene.configure(&setup.clone().set("source.pubsub.subscription", nowhere.as_str()));
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(1), "{checked:#?}");

    let nowhere = format!("{}-nowhere", dead.topic);
    scene.configure(&setup.set("dead_letter.to", nowhere.as_str()));
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(1), "{checked:#?}");
    assert!(checked.stdout.contains("parts-dead-nowhere"), "{checked:#?}");
}

#[test]
fn check_names_each_permission_that_is_missing_and_a_role_that_has_it() {
    let server = Pubsub::start();
    let subscription = Subscription::create_on(&server, "rights", &json!({}));
    let dead = Subscription::create_on(&server, "rights-dead", &json!({}));
    let setup = with_redis(setup(&subscription), Redis::shared())
        .set("scope", "pubsub-rights")
        .set("policy.on_exhausted", "dead-letter")
        .set("dead_letter.to", dead.topic.as_str());
    let scene = scene(&setup);
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(0), "{checked:#?}");
    assert!(!checked.stdout.contains("roles/"), "{checked:#?}");

    let publish = ["pubsub.topics.publish", dead.topic.as_str(), "roles/pubsub.publisher"];
    let consume =
        ["pubsub.subscriptions.consume", subscription.full_name.as_str(), "roles/pubsub.subscriber"];
    server.deny(publish[0]);
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(1), "{checked:#?}");
    assert!(publish.iter().all(|said| checked.stdout.contains(said)), "{checked:#?}");
    assert!(!checked.stdout.contains(consume[0]), "{checked:#?}");

    server.deny(consume[0]);
    let checked = scene.execute(&["check", "onceward.toml"]);
    assert_eq!(checked.code(), Some(1), "{checked:#?}");
    assert!(publish.iter().chain(&consume).all(|said| checked.stdout.contains(said)), "{checked:#?}");
}

#[test]
fn a_message_that_kills_its_program_each_time_reaches_the_dead_letter_topic_of_the_subscription() {
    let spare = Subscription::create("fatal-spare", &json!({}));
    let policy = json!({"deadLetterTopic": spare.topic, "maxDeliveryAttempts": 5});
    let subscription = Subscription::create("fatal", &json!({"deadLetterPolicy": policy}));
    subscription.publish(&[orders::order("fatal", &json!({"ms": 60_000}))]);
    let setup = with_redis(setup(&subscription), Redis::shared())
        .set("scope", "pubsub-fatal")
        // The claim of a killed program must not delay the next attempt.
        .set("store.redis.lease", "2s")
        .set("store.redis.timeout", "1s");
    let scene = scene(&setup);
    let deliveries = || subscription.delivered().first().map_or(0, |(_, message)| message.deliveries);
    for attempt in 1..=5 {
        let running = scene.run();
        until("the next delivery", LONG, || deliveries() >= attempt);
        assert_eq!(running.kill().signal(), Some(9));
    }
    let running = scene.run();
    until("the message to be moved", LONG, || spare.depth().0 == 1);
    stop(vec![running]);
    assert!(subscription.is_empty());
    assert_eq!(deliveries(), 5);
}
