//! Statements of guests, well-behaved and not.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use futures::StreamExt as _;
use tempfile::TempDir;

use super::connection::{Connection, Streamed};
use super::*;

/// Never ends.
const ENDLESS: &str =
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

/// 200,000 rows, some 20 MB.
const LONG: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000)
    SELECT i, 'a text of some length' FROM n";

struct Fixture {
    databases: Databases,
    _directory: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let databases = Databases::open(Some(&directory.path().join("state")), &IndexMap::new()).unwrap();
        Self { databases, _directory: directory }
    }

    fn connect(&self) -> Connection {
        connect(&self.databases)
    }
}

fn connect(databases: &Databases) -> Connection {
    Connection::new(databases.grant(&["default"]).unwrap().by_label["default"].clone())
}

async fn execute(connection: &Connection, statement: &str) -> Result<QueryResult, SqlError> {
    connection.execute(statement.into(), vec![]).await
}

async fn integer(connection: &Connection, statement: &str) -> i64 {
    match execute(connection, statement).await.unwrap().rows[0].values[0] {
        Value::Integer(number) => number,
        ref other => unreachable!("{other:?}"),
    }
}

fn io(result: Result<QueryResult, SqlError>) -> String {
    match result {
        Err(SqlError::Io(cause)) => cause,
        other => unreachable!("{other:?}"),
    }
}

/// Waits until no statement runs any more.
async fn idle(connection_of: &Databases) {
    let threads = &connection_of.threads;
    let all = u32::try_from(STATEMENTS_MAX_COUNT).unwrap();
    let idle = threads.statements.acquire_many(all);
    tokio::time::timeout(Duration::from_secs(20), idle).await.unwrap().unwrap().forget();
    threads.statements.add_permits(STATEMENTS_MAX_COUNT);
}

#[tokio::test]
async fn values_come_back_as_they_were() {
    let fixture = Fixture::new();
    let connection = fixture.connect();
    execute(&connection, "CREATE TABLE t (a, b, c, d, e)").await.unwrap();
    let values = vec![
        Value::Integer(i64::MIN),
        Value::Real(-0.5),
        Value::Text("ä\0z".into()),
        Value::Blob(vec![0, 255]),
        Value::Null,
    ];
    connection.execute("INSERT INTO t VALUES (?, ?, ?, ?, ?)".into(), values.clone()).await.unwrap();
    assert_eq!((connection.last_insert_rowid(), connection.changes_count()), (1, 1));
    let result = execute(&connection, "SELECT *, a AS other FROM t; -- and a comment").await.unwrap();
    assert_eq!(result.columns, ["a", "b", "c", "d", "e", "other"]);
    assert_eq!(result.rows[0].values[..5], values);
    // Another connection has a state of its own.
    let other = fixture.connect();
    assert_eq!(integer(&other, "SELECT count(*) FROM t").await, 1);
    assert_eq!((other.last_insert_rowid(), other.changes_count()), (0, 0));
}

#[tokio::test]
async fn mistakes_are_told() {
    let fixture = Fixture::new();
    let connection = fixture.connect();
    let missing = io(execute(&connection, "SELECT * FROM missing").await);
    assert!(missing.contains("no such table: missing"), "{missing}");
    let misspelt = io(execute(&connection, "SELEKT").await);
    assert!(misspelt.contains("syntax error"), "{misspelt}");
    let missing = io(execute(&connection, "SELECT ?").await);
    assert!(missing.contains("Got 0, needed 1"), "{missing}");
    assert!(io(execute(&connection, "SELECT CAST(x'ff' AS TEXT)").await).contains("not valid UTF-8"));
    for several in ["SELECT 1; SELECT 2", "CREATE TABLE t (a); INSERT INTO t VALUES (1)"] {
        assert_eq!(io(execute(&connection, several).await), "only one statement can be executed at a time");
    }
    for nothing in ["", " ; ;", "-- nothing"] {
        let _ = execute(&connection, nothing).await;
    }
    // As many as would fill the stack if one was read within the other.
    assert!(io(execute(&connection, &"SELECT 1;".repeat(500_000)).await).contains("only one"));
    let long = format!("SELECT '{}'", "x".repeat(STATEMENT_MAX_BYTES));
    assert!(io(execute(&connection, &long).await).contains("the limit is 16777216"));
    assert_eq!(integer(&connection, "SELECT 1").await, 1);
}

#[tokio::test]
async fn files_of_the_host_are_out_of_reach() {
    let fixture = Fixture::new();
    let connection = fixture.connect();
    let outside = fixture._directory.path().join("outside.db");
    let path = outside.display();
    execute(&connection, "CREATE TABLE t (a)").await.unwrap();
    for statement in [
        format!("ATTACH '{path}' AS x"),
        format!("ATTACH 'file:{path}' AS x"),
        format!("ATTACH ('{path}' || '') AS x"),
        format!("ATTACH \"{path}\" AS x"),
        "ATTACH ? AS x".into(),
        "ATTACH 'file:x?mode=memory&cache=shared' AS x".into(),
        "ATTACH 'file:/wisp-0?vfs=memdb' AS x".into(),
        format!("VACUUM INTO '{path}'"),
        format!("VACUUM INTO ('{path}' || '')"),
        "SELECT load_extension('x')".into(),
        "SELECT LOAD_EXTENSION('x', 'y')".into(),
        "PRAGMA writable_schema = ON".into(),
        "PRAGMA temp_store_directory = '/'".into(),
        "PRAGMA data_store_directory = '/'".into(),
        "PRAGMA key = 'x'".into(),
        "PRAGMA nothing_known".into(),
        "SELECT * FROM pragma_writable_schema".into(),
        "DELETE FROM sqlite_schema".into(),
        "SELECT writefile('x', 'y')".into(),
        "SELECT readfile('/etc/passwd')".into(),
    ] {
        let parameters = if statement.contains('?') && statement.contains("ATTACH ?") {
            vec![Value::Text(path.to_string())]
        } else {
            vec![]
        };
        let result = connection.execute(statement.clone(), parameters).await;
        assert!(result.is_err(), "{statement}");
        assert!(!outside.exists(), "{statement}");
    }
    assert_eq!(execute(&connection, "PRAGMA database_list").await.unwrap().rows, []);
    assert_eq!(execute(&connection, "SELECT file FROM pragma_database_list").await.unwrap().rows, []);
    execute(&connection, "VACUUM").await.unwrap();
}

#[tokio::test]
async fn settings_of_the_host_stay() {
    let fixture = Fixture::new();
    let connection = fixture.connect();
    for (pragma, value) in [
        ("journal_mode", "DELETE"),
        ("synchronous", "OFF"),
        ("cache_size", "-2000000"),
        ("max_page_count", "4294967294"),
        ("temp.max_page_count", "4294967294"),
        ("busy_timeout", "3600000"),
        ("mmap_size", "1000000000"),
        ("hard_heap_limit", "1"),
        ("page_size", "65536"),
        ("temp_store", "MEMORY"),
    ] {
        let before = execute(&connection, &format!("PRAGMA {pragma}")).await.unwrap();
        execute(&connection, &format!("PRAGMA {pragma} = {value}")).await.unwrap();
        assert_eq!(execute(&connection, &format!("PRAGMA {pragma}")).await.unwrap(), before, "{pragma}");
    }
    let wal = execute(&connection, "PRAGMA journal_mode = WAL").await.unwrap();
    assert_eq!(wal.rows[0].values, [Value::Text("wal".into())]);
    execute(&connection, "PRAGMA user_version = 7").await.unwrap();
    assert_eq!(integer(&fixture.connect(), "PRAGMA user_version").await, 7);
    execute(&connection, "CREATE TABLE t (a PRIMARY KEY)").await.unwrap();
    assert_eq!(execute(&connection, "SELECT name FROM pragma_table_info('t')").await.unwrap().rows.len(), 1);
}

#[tokio::test]
async fn memory_is_bounded() {
    let fixture = Fixture::new();
    let connection = fixture.connect();
    let too_large =
        "SELECT zeroblob(60000000) UNION ALL SELECT zeroblob(60000001) UNION ALL SELECT zeroblob(60000002)";
    assert_eq!(io(execute(&connection, too_large).await), "the result exceeds the limit of 134217728 bytes");
    assert!(io(execute(&connection, "SELECT length(zeroblob(100000000))").await).contains("too big"));
    execute(&connection, "CREATE TEMP TABLE t (a)").await.unwrap();
    execute(&connection, "ATTACH ':memory:' AS \"m\"\"x\"").await.unwrap();
    execute(&connection, "CREATE TABLE \"m\"\"x\".t2 (a)").await.unwrap();
    for table in ["t", "t2"] {
        let fill = format!(
            "INSERT INTO {table} WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
            SELECT zeroblob(1000000) FROM n"
        );
        assert_eq!(execute(&connection, &fill).await, Err(SqlError::DatabaseFull));
    }
    // Nobody else sees them.
    assert!(io(execute(&fixture.connect(), "SELECT * FROM temp.t").await).contains("no such table"));
}

#[tokio::test]
async fn writers_take_turns() {
    let fixture = Fixture::new();
    execute(&fixture.connect(), "CREATE TABLE t AS SELECT 0 AS n").await.unwrap();
    let tasks: Vec<_> = (0..30)
        .map(|_| {
            let connection = fixture.connect();
            tokio::spawn(async move {
                execute(&connection, "BEGIN IMMEDIATE").await.unwrap();
                let n = integer(&connection, "SELECT n FROM t").await;
                connection.execute("UPDATE t SET n = ?".into(), vec![Value::Integer(n + 1)]).await.unwrap();
                execute(&connection, "COMMIT").await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(integer(&fixture.connect(), "SELECT n FROM t").await, 30);
}

#[tokio::test]
async fn what_is_not_committed_is_undone_with_its_connection() {
    let fixture = Fixture::new();
    let connection = fixture.connect();
    execute(&connection, "CREATE TABLE t (a)").await.unwrap();
    execute(&connection, "BEGIN").await.unwrap();
    execute(&connection, "INSERT INTO t VALUES (1)").await.unwrap();
    let other = fixture.connect();
    // Readers do not wait for it.
    assert_eq!(integer(&other, "SELECT count(*) FROM t").await, 0);
    let writes = execute(&other, "INSERT INTO t VALUES (2)");
    let ends = async { drop(connection) };
    let (written, ()) = tokio::join!(writes, ends);
    written.unwrap();
    assert_eq!(integer(&other, "SELECT group_concat(a) = '2' FROM t").await, 1);
}

#[tokio::test]
async fn a_statement_ends_with_its_request() {
    let fixture = Fixture::new();
    let connection = fixture.connect();
    let endless = tokio::time::timeout(Duration::from_millis(50), execute(&connection, ENDLESS));
    assert!(endless.await.is_err());
    idle(&fixture.databases).await;
    assert_eq!(integer(&connection, "SELECT 1").await, 1);
}

#[tokio::test]
async fn a_long_result_is_streamed() {
    let fixture = Fixture::new();
    let connection = fixture.connect();
    let Streamed::Parts { columns, rows } = connection.stream(LONG.into(), vec![]).await.unwrap() else {
        unreachable!("the result is long")
    };
    assert_eq!(columns, ["i", "'a text of some length'"]);
    let mut pages = Box::pin(rows.pages());
    let mut next = 1;
    while let Some(page) = pages.next().await {
        for row in page.unwrap() {
            assert_eq!(row.values[0], Value::Integer(next));
            next += 1;
        }
    }
    assert_eq!(next, 200_001);
    // A short one is there at once, and so is what a writing statement returns.
    for statement in ["SELECT 1", "CREATE TABLE t AS SELECT 1", "INSERT INTO t VALUES (2) RETURNING *"] {
        let streamed = connection.stream(statement.into(), vec![]).await.unwrap();
        assert!(matches!(streamed, Streamed::Whole(_)), "{statement}");
    }
}

#[tokio::test]
async fn a_connection_can_be_used_while_its_stream_is_read() {
    let fixture = Fixture::new();
    let connection = fixture.connect();
    let Streamed::Parts { rows, .. } = connection.stream(LONG.into(), vec![]).await.unwrap() else {
        unreachable!("the result is long")
    };
    let mut pages = Box::pin(rows.pages());
    let mut rows_count = pages.next().await.unwrap().unwrap().len();
    assert_eq!(integer(&connection, "SELECT 5").await, 5);
    while let Some(page) = pages.next().await {
        rows_count += page.unwrap().len();
    }
    assert_eq!(rows_count, 200_000);
}

#[tokio::test]
async fn a_stream_that_is_dropped_frees_its_thread() {
    let fixture = Fixture::new();
    let connection = fixture.connect();
    let endless = ENDLESS.replace("count(*)", "i");
    let Streamed::Parts { rows, .. } = connection.stream(endless, vec![]).await.unwrap() else {
        unreachable!("the result is endless")
    };
    drop(rows);
    idle(&fixture.databases).await;
    assert_eq!(integer(&connection, "SELECT 1").await, 1);
}

#[tokio::test]
async fn a_stream_that_fails_says_so_at_its_end() {
    let fixture = Fixture::new();
    let connection = fixture.connect();
    let fails = LONG
        .replace("SELECT i, ", "SELECT i, abs(CASE i WHEN 150000 THEN -9223372036854775808 ELSE 1 END), ");
    let Streamed::Parts { rows, .. } = connection.stream(fails, vec![]).await.unwrap() else {
        unreachable!("the result is long")
    };
    let last = rows.pages().collect::<Vec<_>>().await.pop().unwrap();
    assert!(matches!(last, Err(SqlError::Io(cause)) if cause.contains("integer overflow")));
}

#[tokio::test]
async fn databases_in_memory_live_as_long_as_the_process() {
    let databases = Databases::open(None, &IndexMap::new()).unwrap();
    databases.execute("default", "CREATE TABLE t (a); INSERT INTO t VALUES (1)").unwrap();
    execute(&connect(&databases), "INSERT INTO t VALUES (2)").await.unwrap();
    assert_eq!(integer(&connect(&databases), "SELECT count(*) FROM t").await, 2);
    let others = Databases::open(None, &IndexMap::new()).unwrap();
    assert!(io(execute(&connect(&others), "SELECT * FROM t").await).contains("no such table"));
}

#[test]
fn statements_of_the_operator_must_be_whole() {
    let fixture = Fixture::new();
    let error = fixture.databases.execute("default", "BEGIN; CREATE TABLE t (a)").unwrap_err();
    assert_eq!(error.code(), "WISP-E0313");
    assert!(error.to_string().ends_with("a transaction is not ended with COMMIT"));
    fixture.databases.execute("default", "CREATE TABLE t (a)").unwrap();
    assert_eq!(fixture.databases.execute("other", "SELECT 1").unwrap_err().code(), "WISP-E0310");
    let other = IndexMap::from([("x".to_owned(), DatabaseConfig::Other { backend: "libsql".into() })]);
    assert_eq!(Databases::open(None, &other).err().unwrap().code(), "WISP-E0311");
}

#[tokio::test]
async fn files_may_be_attached_where_the_operator_allows_it() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("main.db");
    let config = DatabaseConfig::Spin { path: Some(path), allow_attach_file: true };
    let databases = Databases::open(None, &IndexMap::from([("default".to_owned(), config)])).unwrap();
    let connection = connect(&databases);
    let other = directory.path().join("other.db");
    execute(&connection, &format!("ATTACH '{}' AS other", other.display())).await.unwrap();
    execute(&connection, "CREATE TABLE other.t (a)").await.unwrap();
    assert!(other.exists());
}

/// Prints what connections and statements cost:
/// `cargo test --release -p wisp-capability measure -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "not a test: a measurement"]
#[expect(clippy::print_stdout, reason = "a measurement")]
async fn measure() {
    use std::time::Instant;

    let directory = TempDir::new_in(std::env::current_dir().unwrap()).unwrap();
    let databases = Databases::open(Some(directory.path()), &IndexMap::new()).unwrap();
    let connection = connect(&databases);
    execute(&connection, "CREATE TABLE t (id INTEGER PRIMARY KEY, a)").await.unwrap();
    execute(&connection, "INSERT INTO t (a) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000) SELECT 'text ' || i FROM n").await.unwrap();
    let path = directory.path().join(DEFAULT_FILE_NAME);
    let each = |start: Instant, count: f64| start.elapsed().as_secs_f64() * 1e6 / count;

    let start = Instant::now();
    for _ in 0..1000 {
        databases.link("default").unwrap().database.connect(false).unwrap();
    }
    println!("open and close: {:.1} us", each(start, 1000.0));
    let start = Instant::now();
    for _ in 0..1000 {
        file::open(&path).unwrap();
    }
    println!("of it without settings: {:.1} us", each(start, 1000.0));
    let start = Instant::now();
    for index in 0..2000 {
        connect(&databases)
            .execute("SELECT * FROM t WHERE id = ?".into(), vec![Value::Integer(index)])
            .await
            .unwrap();
    }
    println!("point select, a connection each: {:.1} us", each(start, 2000.0));
    let start = Instant::now();
    for index in 0..10_000 {
        connection.execute("SELECT * FROM t WHERE id = ?".into(), vec![Value::Integer(index)]).await.unwrap();
    }
    println!("point select, one connection: {:.1} us", each(start, 10_000.0));
    let start = Instant::now();
    for _ in 0..100 {
        execute(&connection, "SELECT * FROM t").await.unwrap();
    }
    println!("select 10000 rows: {:.0} us", each(start, 100.0));
    let start = Instant::now();
    for _ in 0..500 {
        execute(&connection, "INSERT INTO t (a) VALUES (1)").await.unwrap();
    }
    println!("insert, one after another: {:.0} us", each(start, 500.0));
    let start = Instant::now();
    let tasks: Vec<_> = (0..32)
        .map(|_| {
            let connection = connect(&databases);
            tokio::spawn(async move {
                for _ in 0..20 {
                    execute(&connection, "INSERT INTO t (a) VALUES (1)").await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    println!("insert, 32 requests at once: {:.0} us each", each(start, 640.0));
    execute(&connection, "BEGIN").await.unwrap();
    let start = Instant::now();
    for _ in 0..5000 {
        execute(&connection, "INSERT INTO t (a) VALUES (1)").await.unwrap();
    }
    println!("insert within a transaction: {:.1} us", each(start, 5000.0));
}
