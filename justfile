# Short names for what people do often. Nothing here is needed: each recipe is one command.

# The first run.
quickstart:
    cargo run --no-default-features --features sqlite -- run examples/quickstart/onceward.toml

# All checks, as CI runs them.
test:
    scripts/test

# The cost of the pipeline per message, on one core.
bench:
    cargo bench --features testing --bench pipeline

# All benchmarks beside their targets; with --quick only whether they work.
benches *args:
    scripts/bench {{args}}

# The instructions of a message in the pipeline, compared with the committed counts; with --update they are written.
instructions *args:
    scripts/instructions {{args}}

# One seed of the simulation, as a failing run prints it.
replay seed:
    SIM_SEED={{seed}} cargo test -p onceward-tests --test simulation

# The book of docs/, in target/book.
book:
    scripts/book

# The generated pages of docs/reference and docs/man.
reference:
    ONCEWARD_WRITE_REFERENCE=1 cargo test --workspace --locked --test reference

# The servers for trying things by hand.
servers:
    docker compose up --wait
