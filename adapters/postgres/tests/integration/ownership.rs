//! Tests of schemas prepared by another role, objects put there by another role, and locks held by other sessions.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use onceward::adapter::Expiring;
use onceward::store::AdviceLevel;
use onceward::{Error, ErrorKind, Outgoing, Store};
use onceward_postgres::{PgConfig, PgStore};
use onceward_test_servers::postgres::Postgres;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::store::{lease, requests, scope, terms};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A schema's name, and a hostile role of that name with `_evil` behind it. Every role may create schemas.
struct Place {
    server: &'static Postgres,
    schema: String,
    evil: String,
}

impl Place {
    async fn new() -> Self {
        let server = tokio::task::spawn_blocking(Postgres::shared).await.unwrap();
        let schema = format!("owned_{}", COUNT.fetch_add(1, Ordering::SeqCst));
        let evil = format!("{schema}_evil");
        // Once: two at the same time would be in each other's way.
        static OPEN: OnceLock<String> = OnceLock::new();
        OPEN.get_or_init(|| server.sql("GRANT CREATE ON DATABASE postgres TO PUBLIC"));
        server.sql(&format!("CREATE ROLE {evil} LOGIN"));
        Self { server, schema, evil }
    }

    fn config(&self, role: &str) -> PgConfig {
        {
            let mut config = PgConfig::new(self.server.url(role));
            config.options.schema = self.schema.clone();
            config
        }
    }

    /// As the superuser; `@` is the schema, `?` the hostile role.
    fn sql(&self, sql: &str) -> String {
        self.server.sql(&sql.replace('@', &self.schema).replace('?', &self.evil))
    }

    /// As the hostile role.
    async fn evil(&self, sql: &str) -> Result<(), sqlx::Error> {
        self.run_as(&self.evil, sql).await
    }

    async fn run_as(&self, role: &str, sql: &str) -> Result<(), sqlx::Error> {
        let mut conn = PgConnection::connect(&self.server.url(role)).await.unwrap();
        let sql = sql.replace('@', &self.schema).replace('?', &self.evil);
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await.map(drop)
    }

    async fn migrate(&self, role: &str) -> Result<u32, Error> {
        PgStore::migrate(&self.config(role)).await
    }

    /// A role for workers, with the documented rights.
    fn worker(&self) -> String {
        let worker = format!("{}_worker", self.schema);
        let grants = PgStore::grants(&self.config("postgres").options, &worker).unwrap();
        self.server.sql(&format!("CREATE ROLE {worker} LOGIN; {grants}"));
        worker
    }

    async fn open(&self, role: &str) -> Result<PgStore, Error> {
        let mut config = self.config(role);
        config.options.migrate = false;
        PgStore::open(config).await
    }

    fn is_superuser(&self) -> bool {
        self.sql("SELECT rolsuper FROM pg_roles WHERE rolname = '?'") == "t"
    }
}

fn refused<T>(outcome: Result<T, Error>, about: &str) {
    let Err(error) = outcome else { panic!("it was not refused: {about}") };
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains(about), "{error}");
}

/// A trigger function that uses the rights of its caller to make the hostile role a superuser.
const BOOM: &str = "CREATE FUNCTION @.boom() RETURNS trigger LANGUAGE plpgsql AS \
    $$ BEGIN EXECUTE 'ALTER ROLE ? SUPERUSER'; RETURN NEW; END $$;";
const BOOK: &str = "CREATE TABLE @.migrations (version integer NOT NULL PRIMARY KEY, name text NOT NULL, \
    applied_at timestamptz NOT NULL DEFAULT now());";

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_somebody_else_made_is_not_migrated() {
    let place = Place::new().await;
    let trigger = "CREATE TRIGGER boom BEFORE INSERT ON @.migrations FOR EACH ROW EXECUTE FUNCTION @.boom()";
    place.evil(&format!("CREATE SCHEMA @; {BOOK} {BOOM} {trigger}")).await.unwrap();
    refused(place.migrate("postgres").await, &format!("owned by {}", place.evil));
    // An empty one, which its owner could fill while it is migrated.
    place.sql("DROP SCHEMA @ CASCADE");
    place.evil("CREATE SCHEMA @").await.unwrap();
    refused(place.migrate("postgres").await, &format!("owned by {}", place.evil));
    // A role that is no superuser refuses as well, even if it may create objects in the schema.
    let dba = format!("{}_dba", place.schema);
    place.sql(&format!("CREATE ROLE {dba} LOGIN; GRANT ALL ON SCHEMA @ TO {dba}"));
    refused(place.migrate(&dba).await, &format!("owned by {}", place.evil));
    assert!(!place.is_superuser());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_made_is_not_even_read() {
    let place = Place::new().await;
    let function = "CREATE FUNCTION @.boom() RETURNS integer LANGUAGE plpgsql AS \
        $$ BEGIN EXECUTE 'ALTER ROLE ? SUPERUSER'; RETURN 1; END $$;";
    let view = "CREATE VIEW @.migrations AS SELECT @.boom() AS version, 'x'::text AS name; \
        GRANT USAGE ON SCHEMA @ TO PUBLIC; GRANT SELECT ON @.migrations TO PUBLIC";
    place.evil(&format!("CREATE SCHEMA @; {function} {view}")).await.unwrap();
    refused(PgStore::missing_migrations(&place.config("postgres")).await, "owned by");
    refused(place.migrate("postgres").await, "owned by");
    refused(place.open("postgres").await, "owned by");
    assert!(!place.is_superuser());
    // With the rights of others it would do other things.
    place.sql("CREATE ROLE @_reader LOGIN");
    refused(place.open(&format!("{}_reader", place.schema)).await, "is no ordinary table");
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_others_in_the_schema_are_refused_until_they_are_handed_over() {
    let place = Place::new().await;
    place.migrate("postgres").await.unwrap();
    let worker = place.worker();
    place.open(&worker).await.unwrap();
    place.sql("GRANT USAGE, CREATE ON SCHEMA @ TO ?; GRANT TRIGGER, SELECT, REFERENCES ON ALL TABLES IN SCHEMA @ TO ?");
    for (made, told, unmade) in [
        (
            "CREATE FUNCTION @.complete(varchar) RETURNS void LANGUAGE sql AS ''",
            "function complete is owned",
            "DROP FUNCTION @.complete(varchar)",
        ),
        ("CREATE TABLE @.later (n int)", "table later is owned", "DROP TABLE @.later"),
        ("CREATE DOMAIN @.later AS int", "type later is owned", "DROP DOMAIN @.later"),
        (
            "CREATE FUNCTION pg_temp.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
          CREATE TRIGGER spy BEFORE INSERT ON @.meta FOR EACH ROW EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()",
            "table meta has a trigger spy",
            "DROP TRIGGER spy ON @.meta",
        ),
        (
            "CREATE TRIGGER outbox_wake AFTER INSERT ON @.keys FOR EACH STATEMENT EXECUTE FUNCTION @.outbox_wake()",
            "table keys has a trigger outbox_wake",
            "DROP TRIGGER outbox_wake ON @.keys",
        ),
    ] {
        place.evil(made).await.unwrap();
        refused(place.open(&worker).await, told);
        refused(place.migrate("postgres").await, told);
        place.sql(unmade);
        place.open(&worker).await.unwrap();
    }
    for (made, told, unmade) in [
        ("ALTER TABLE @.keys OWNER TO ?", "table keys is owned", "ALTER TABLE @.keys OWNER TO postgres"),
        ("ALTER SCHEMA @ OWNER TO ?", "the schema is owned", "ALTER SCHEMA @ OWNER TO postgres"),
        (
            "ALTER FUNCTION @.complete(text) OWNER TO ?",
            "function complete is owned",
            "ALTER FUNCTION @.complete(text) OWNER TO postgres",
        ),
        (
            "CREATE RULE spy AS ON INSERT TO @.outbox DO ALSO NOTHING",
            "table outbox has a rule spy",
            "DROP RULE spy ON @.outbox",
        ),
        (
            "ALTER TABLE @.keys ENABLE ROW LEVEL SECURITY",
            "keys is no ordinary table, or has row security",
            "ALTER TABLE @.keys DISABLE ROW LEVEL SECURITY",
        ),
        (
            "CREATE TABLE public.@ (s bigint, k bytea, FOREIGN KEY (s, k) REFERENCES @.keys)",
            "table keys has a foreign key of",
            "DROP TABLE public.@",
        ),
    ] {
        place.sql(made);
        refused(place.open(&worker).await, told);
        place.sql(unmade);
        place.open(&worker).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usual_ways_to_own_a_schema_work() {
    // One role that is no superuser makes everything, and workers have less.
    let place = Place::new().await;
    place.sql("CREATE ROLE @_dba LOGIN");
    place.migrate(&format!("{}_dba", place.schema)).await.unwrap();
    place.open(&place.worker()).await.unwrap();
    // A worker that would migrate, with nothing left to do.
    PgStore::open(place.config(&format!("{}_worker", place.schema))).await.unwrap();
    // A superuser does not work in the schema of another role, which could have it run code.
    refused(place.open("postgres").await, &format!("owned by {}_dba", place.schema));

    // The schema is created by a superuser for another role, or by a superuser that lets another role create in it.
    for made in
        ["CREATE SCHEMA @ AUTHORIZATION @_dba", "CREATE SCHEMA @; GRANT USAGE, CREATE ON SCHEMA @ TO @_dba"]
    {
        let place = Place::new().await;
        place.sql(&format!("CREATE ROLE @_dba LOGIN; {made}"));
        place.migrate(&format!("{}_dba", place.schema)).await.unwrap();
        place.open(&place.worker()).await.unwrap();
    }

    // A group owns the schema, and its members migrate.
    let place = Place::new().await;
    place.sql(
        "CREATE ROLE @_group; CREATE ROLE @_dba LOGIN IN ROLE @_group; CREATE ROLE @_other LOGIN IN ROLE @_group; \
         CREATE SCHEMA @ AUTHORIZATION @_group",
    );
    place.migrate(&format!("{}_dba", place.schema)).await.unwrap();
    place.run_as(&format!("{}_other", place.schema), "CREATE TABLE @.report (n int)").await.unwrap();
    place.open(&place.worker()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_to_create_that_workers_do_not_need_is_told() {
    let place = Place::new().await;
    place.migrate("postgres").await.unwrap();
    let worker = place.worker();
    let store = place.open(&worker).await.unwrap();
    let told = |advice: Vec<onceward::store::Advice>| {
        let warnings = advice.into_iter().filter(|advice| advice.level == AdviceLevel::Warning);
        warnings.map(|advice| advice.text).collect::<Vec<_>>().join("\n")
    };
    let quiet = told(store.check().await.unwrap());
    assert!(!quiet.contains("may create objects"), "{quiet}");
    place.sql(
        "GRANT CREATE ON SCHEMA @ TO ?; CREATE SCHEMA @_open; GRANT USAGE, CREATE ON SCHEMA @_open TO PUBLIC",
    );
    place.sql("ALTER ROLE @_worker SET search_path = @_open");
    let store = place.open(&worker).await.unwrap();
    let loud = told(store.check().await.unwrap());
    assert!(loud.contains(&format!("{} may create objects", place.evil)), "{loud}");
    assert!(loud.contains(&format!("({}_open)", place.schema)), "{loud}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_function_looks_names_up_in_the_catalogue_only() {
    let place = Place::new().await;
    place.migrate("postgres").await.unwrap();
    let functions = "FROM pg_proc WHERE pronamespace = '@'::regnamespace";
    assert!(place.sql(&format!("SELECT count(*) {functions}")).parse::<u32>().unwrap() >= 6);
    let pinned = "AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false)";
    assert_eq!(place.sql(&format!("SELECT proname {functions} {pinned}")), "");
    // What runs with its owner's rights is not everybody's: it would handle values and types of theirs.
    let definers = "AND prosecdef AND has_function_privilege('?', oid, 'EXECUTE')";
    assert_eq!(place.sql(&format!("SELECT proname {functions} {definers}")), "");
    place.sql("GRANT USAGE ON SCHEMA @ TO ?");
    let stolen = "CREATE SCHEMA @_x; CREATE TABLE @_x.outbox (seq bigint, order_key bytea); \
        CREATE TRIGGER t BEFORE INSERT ON @_x.outbox FOR EACH ROW EXECUTE FUNCTION @.outbox_number()";
    let error = place.evil(stolen).await.unwrap_err().to_string();
    assert!(error.contains("permission denied for function"), "{error}");
    // Even one who was given it gets nowhere.
    place.sql("GRANT EXECUTE ON FUNCTION @.outbox_number() TO ?");
    let error = place.evil(&format!("{stolen}; INSERT INTO @_x.outbox VALUES (1, 'k')")).await.unwrap_err();
    assert!(error.to_string().contains("for the table outbox of its own schema"), "{error}");
}

fn message() -> Outgoing {
    Outgoing {
        destination: "there".into(),
        order_key: Some("k".into()),
        payload: "x".into(),
        ..Outgoing::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_lock_that_a_stranger_can_hold_stops_anything() {
    let place = Place::new().await;
    let mut stranger = PgConnection::connect(&place.server.url(&place.evil)).await.unwrap();
    let schema = &place.schema;
    // What earlier releases locked.
    for (name, seed) in [
        (format!("onceward migrations {schema}"), 7),
        (format!("onceward purge \"{schema}\""), 7),
        ("6b".to_owned(), 11),
    ] {
        let lock =
            sqlx::query("SELECT pg_advisory_lock(hashtextextended($1, $2))").bind(name).bind(i64::from(seed));
        lock.execute(&mut stranger).await.unwrap();
    }
    place.migrate("postgres").await.unwrap();
    let worker = place.worker();
    let store = place.open(&worker).await.unwrap();
    let mut conn = PgConnection::connect(&place.server.url(&worker)).await.unwrap();
    let mut open = conn.begin().await.unwrap();
    open.execute("SET LOCAL lock_timeout = '5s'").await.unwrap();
    store.outbox().put(&mut open, &[message()]).await.unwrap();
    // Nor is there any that could be seen and held.
    let _ = lease(&store.claim(&scope(), &terms(), &requests([1])).await.remove(0).unwrap());
    let held = format!(
        "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
         WHERE l.locktype = 'advisory' AND a.usename <> '{}'",
        place.evil
    );
    assert_eq!(place.sql(&held), "0");
    open.commit().await.unwrap();
    place.sql("UPDATE @.keys SET expires_at = 1, lease_until = 0, written_at = 1, fence = 1");
    assert_eq!(store.purge(10).await.unwrap(), 1);
    for table in ["outbox_turns", "meta", "migrations", "keys", "outbox"] {
        place.sql("GRANT USAGE ON SCHEMA @ TO ?");
        let error = place.evil(&format!("SELECT * FROM @.{table} FOR UPDATE")).await.unwrap_err();
        assert!(error.to_string().contains("permission denied for table"), "{table}: {error}");
    }
    // Nor may roles that write to the outbox take a turn otherwise.
    let error = place.run_as(&worker, "SELECT * FROM @.outbox_turns FOR UPDATE").await.unwrap_err();
    assert!(error.to_string().contains("permission denied for table"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_create_the_schema_at_the_same_time_all_succeed() {
    let place = Place::new().await;
    let migrations = (0..6).map(|_| {
        let config = place.config("postgres");
        tokio::spawn(async move { PgStore::migrate(&config).await })
    });
    let mut applied = 0;
    for migration in migrations.collect::<Vec<_>>() {
        let steps = tokio::time::timeout(Duration::from_secs(60), migration).await.unwrap().unwrap().unwrap();
        applied += u32::from(steps > 0);
    }
    assert_eq!(applied, 1);
}
