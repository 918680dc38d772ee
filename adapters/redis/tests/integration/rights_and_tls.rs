//! The minimal ACL user, wrong and changed passwords, and TLS. No error contains a secret.

use onceward::adapter::StoreAdmin;
use onceward::store::{AdviceLevel, Completion};
use onceward::{Error, ErrorKind, Store};
use onceward_redis::{RedisConfig, RedisLayout, RedisOptions, RedisStore};
use onceward_test_servers::redis::Redis;
use onceward_test_servers::telling::all_told;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::support::{
    ACL_FOR_COMPACT, ACL_FOR_TOOLS, ACL_TO_WORK, ConfigExt, answered, claim, complete, config, lease_of,
    open, request, scope,
};

const CANARY: &str = "hunter2-canary";

fn with_user(rights: &str) -> Redis {
    let server = Redis::start();
    set_user(&server, CANARY, rights);
    server
}

fn set_user(server: &Redis, password: &str, rights: &str) {
    let password = format!(">{password}");
    let mut arguments = vec!["ACL", "SETUSER", "onceward", "reset", "on", &password];
    arguments.extend(rights.split_whitespace());
    server.cli(&arguments);
}

fn as_user(server: &Redis) -> RedisConfig {
    config(&server.url()).username("onceward").password(CANARY)
}

fn assert_tells_no_secret(error: &Error) {
    let told = all_told(error);
    assert!(!told.contains("hunter2"), "{told}");
}

#[tokio::test]
async fn the_documented_rights_are_what_the_readme_says() {
    let readme = include_str!("../../README.md");
    assert!(readme.contains(&format!("{ACL_TO_WORK} {ACL_FOR_TOOLS}")), "{ACL_TO_WORK} {ACL_FOR_TOOLS}");
    assert!(readme.contains(&format!("`{ACL_FOR_COMPACT}`")), "{ACL_FOR_COMPACT}");
}

#[tokio::test]
async fn the_minimal_user_works_and_is_told_what_it_lacks() {
    let server = with_user(ACL_TO_WORK);
    let store = open(&as_user(&server));
    let advice = store.check().await.unwrap();
    assert!(
        advice
            .iter()
            .any(|advice| advice.level == AdviceLevel::Warning && advice.text.contains("may not use SCAN")),
        "{advice:?}"
    );
    let lease = lease_of(claim(&store, request(1)).await.unwrap());
    assert_eq!(complete(&store, lease).await.unwrap(), Completion::Completed);
    let error = store.stats(&scope()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    set_user(&server, CANARY, &format!("{ACL_TO_WORK} {ACL_FOR_TOOLS}"));
    assert_eq!(store.stats(&scope()).await.unwrap().total(), 1);
}

#[tokio::test]
async fn each_right_is_needed() {
    let with_compact = format!("{ACL_TO_WORK} {ACL_FOR_COMPACT}");
    for (rights, layout) in [(ACL_TO_WORK, RedisLayout::Plain), (&with_compact, RedisLayout::Compact)] {
        let server = with_user(rights);
        let config = as_user(&server).layout(layout);
        open(&config).check().await.unwrap();
        for missing in rights.split_whitespace() {
            let rest: Vec<&str> = rights.split_whitespace().filter(|right| *right != missing).collect();
            set_user(&server, CANARY, &rest.join(" "));
            server.cli(&[
                "EVAL",
                "for _, name in ipairs(redis.call('KEYS', 'ow:!c*')) do redis.call('DEL', name) end",
                "0",
            ]);
            server.cli(&["SCRIPT", "FLUSH"]);
            let error = open(&config).check().await;
            let error = error.expect_err(&format!("nothing needs {missing}"));
            assert_eq!(error.kind(), ErrorKind::Denied, "{missing}: {error:?}");
        }
    }
}

#[tokio::test]
async fn keys_of_others_are_out_of_reach() {
    let server = with_user(ACL_TO_WORK);
    let store = open(&as_user(&server).prefix("someone-else"));
    for error in [store.check().await.unwrap_err(), claim(&store, request(1)).await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_denied_and_not_told() {
    let server = with_user(ACL_TO_WORK);
    set_user(&server, "another", ACL_TO_WORK);
    let in_url = format!("redis://onceward:{CANARY}@127.0.0.1:{}", server.port());
    let unknown = config(&server.url()).username("nobody").password(CANARY);
    for config in [as_user(&server), config(&in_url), unknown] {
        let store = open(&config);
        for error in [store.check().await.unwrap_err(), claim(&store, request(1)).await.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
            assert_tells_no_secret(&error);
        }
        assert!(!format!("{store:?} {config:?}").contains("hunter2"));
    }
    server.cli(&["CONFIG", "SET", "requirepass", "another"]);
    let error = claim(&open(&config(&server.url())), request(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    assert!(error.to_string().contains("requires a password"), "{error}");
}

#[tokio::test]
async fn a_changed_password_is_denied_until_it_is_changed_back() {
    let server = with_user(ACL_TO_WORK);
    let store = open(&as_user(&server));
    let lease = lease_of(claim(&store, request(1)).await.unwrap());
    set_user(&server, "another", ACL_TO_WORK);
    server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    let denied = async {
        for _ in 0..20 {
            let error = complete(&store, lease).await.unwrap_err();
            assert_tells_no_secret(&error);
            if error.kind() == ErrorKind::Denied {
                return true;
            }
        }
        false
    };
    assert!(denied.await);
    set_user(&server, CANARY, ACL_TO_WORK);
    // The pause after a failed login passes.
    tokio::time::sleep(std::time::Duration::from_millis(250)).await;
    assert_eq!(complete(&store, lease).await.unwrap(), Completion::Completed);
}

#[tokio::test]
async fn each_new_connection_asks_for_the_password() {
    let server = with_user(ACL_TO_WORK);
    let password = std::sync::Arc::new(std::sync::Mutex::new(Ok(CANARY)));
    let asked = std::sync::Arc::clone(&password);
    let config = config(&server.url()).username("onceward").password_from(move || {
        let said: Result<&str, &str> = *asked.lock().unwrap();
        said.map(str::to_owned).map_err(|what| Error::new(ErrorKind::Unavailable, "read the password", what))
    });
    assert!(!format!("{config:?}").contains("hunter2"));
    let store = open(&config);
    let lease = lease_of(claim(&store, request(1)).await.unwrap());
    set_user(&server, "hunter2-another", ACL_TO_WORK);
    *password.lock().unwrap() = Err("the file is being written");
    server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    let mut errors = Vec::new();
    while !errors.iter().any(|error: &Error| error.to_string().contains("being written")) {
        assert!(errors.len() < 20, "{errors:?}");
        errors.push(complete(&store, lease).await.unwrap_err());
    }
    *password.lock().unwrap() = Ok("hunter2-another");
    assert_eq!(answered(async || complete(&store, lease).await).await, Completion::Completed);
}

/// A certificate authority, and its certificate for 127.0.0.1.
fn certificates(host: &str) -> (String, String, String) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    (authority.pem(), certificate.pem(), key.serialize_pem())
}

#[tokio::test]
async fn tls_works_with_the_right_authority_and_no_other() {
    let (authority, certificate, key) = certificates("127.0.0.1");
    let server = Redis::start_with_tls(&certificate, &key);
    let store = open(&config(&server.url()).ca(authority.clone()));
    let lease = lease_of(claim(&store, request(1)).await.unwrap());
    assert_eq!(complete(&store, lease).await.unwrap(), Completion::Completed);
    store.check().await.unwrap();

    let (another, ..) = certificates("127.0.0.1");
    for wrong in [config(&server.url()).ca(another), config(&server.url())] {
        let error = claim(&open(&wrong), request(2)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
        assert!(error.to_string().contains("check the CA"), "{error}");
    }
    let localhost = format!("rediss://localhost:{}", server.port());
    let error = claim(&open(&config(&localhost).ca(authority)), request(2)).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Config, "another host name");
}

#[tokio::test]
async fn tls_and_plain_text_do_not_meet() {
    let (authority, certificate, key) = certificates("127.0.0.1");
    let with_tls = Redis::start_with_tls(&certificate, &key);
    let plain = Redis::start();
    let to_tls = config(&format!("redis://127.0.0.1:{}", with_tls.port()));
    let to_plain = config(&format!("rediss://127.0.0.1:{}", plain.port())).ca(authority);
    for config in [to_tls, to_plain] {
        let short = config.response_timeout(std::time::Duration::from_secs(1));
        assert!(claim(&open(&short), request(1)).await.is_err());
    }
}

#[test]
fn a_certificate_that_is_none_is_refused_before_any_connection() {
    for url in ["rediss://127.0.0.1:1", "rediss://127.0.0.1:1,cluster"] {
        let config = match url.strip_suffix(",cluster") {
            Some(url) => RedisConfig::cluster([url]),
            None => config(url),
        };
        let wrong = "-----BEGIN CERTIFICATE-----\nhunter2\n-----END CERTIFICATE-----";
        let error = RedisStore::open(config.ca(wrong)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
        assert_tells_no_secret(&error);
    }
}

#[tokio::test]
async fn a_client_or_a_connection_of_the_callers_own_will_do() {
    let server = Redis::start();
    let client = redis::Client::open(server.url()).unwrap();
    let store = RedisStore::from_client(client.clone(), RedisOptions::default()).unwrap();
    let lease = lease_of(claim(&store, request(1)).await.unwrap());
    let manager = redis::aio::ConnectionManager::new(client).await.unwrap();
    let store = RedisStore::from_connection(manager.clone(), RedisOptions::default()).unwrap();
    assert_eq!(complete(&store, lease).await.unwrap(), Completion::Completed);
    server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    assert_eq!(answered(async || complete(&store, lease).await).await, Completion::Repeated);
    let mut invalid = RedisOptions::default();
    invalid.prefix.clear();
    assert!(RedisStore::from_client(redis::Client::open(server.url()).unwrap(), invalid.clone()).is_err());
    assert!(RedisStore::from_connection(manager, invalid).is_err());
}
