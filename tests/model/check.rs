//! Explores the models: exhaustively, for a counterexample, for reachability, for cycles.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::hash::Hash;

use stateright::{Checker, HasDiscoveries, Model};

/// Explores every state within the model's bounds, counting states that differ in names only once, and returns their number.
///
/// Panics with the path if a property that must hold does not, or if one that must be reachable is not.
pub(crate) fn explore_all<M>(model: M, representative: fn(&M::State) -> M::State) -> usize
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync,
{
    let checker = model.checker().threads(2).symmetry_fn(representative).spawn_dfs().join();
    checker.assert_properties();
    checker.unique_state_count()
}

/// Looks for a counterexample to each of these properties, and prints a shortest one.
///
/// Panics if a property has no counterexample.
pub(crate) fn must_find<M>(model: M, properties: &[&'static str])
where
    M: Model + Clone + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync,
{
    for property in properties {
        // The checker stops some way behind the first counterexample, so it is sent a step deeper each time.
        let found = (1..MAX_DEPTH).find_map(|depth| {
            let wanted = HasDiscoveries::AnyOf(BTreeSet::from([*property]));
            let search = model.clone().checker().finish_when(wanted).target_max_depth(depth);
            search.spawn_bfs().join().discovery(property)
        });
        let Some(path) = found else { panic!("no counterexample to \"{property}\"") };
        let actions = path.into_actions();
        report(&format!("broken after {} steps: {property}: {actions:?}", actions.len()));
    }
}

/// Steps to look for a counterexample.
const MAX_DEPTH: usize = 30;

/// Walks all paths and returns the length of the longest, in steps.
///
/// Panics if some path returns to a state it has been in: it would not have to end.
pub(crate) fn longest_path<M>(model: &M, representative: fn(&M::State) -> M::State) -> usize
where
    M: Model,
    M::State: Clone + Debug + Eq + Hash,
{
    struct Visit<S> {
        state: S,
        next: Vec<S>,
        longest: usize,
    }
    let visit = |state: M::State| {
        let next = model.next_states(&state).iter().map(representative).collect();
        Visit { state, next, longest: 0 }
    };
    // `None` while the state is on the path being walked; then the longest path from it.
    let mut known: HashMap<M::State, Option<usize>> = HashMap::new();
    let mut longest = 0;
    for start in model.init_states() {
        let mut path = vec![visit(representative(&start))];
        known.insert(path[0].state.clone(), None);
        while let Some(here) = path.last_mut() {
            let Some(next) = here.next.pop() else {
                let (state, steps) = (here.state.clone(), here.longest);
                known.insert(state, Some(steps));
                path.pop();
                match path.last_mut() {
                    Some(before) => before.longest = before.longest.max(steps + 1),
                    None => longest = longest.max(steps),
                }
                continue;
            };
            match known.get(&next) {
                Some(Some(steps)) => here.longest = here.longest.max(steps + 1),
                Some(None) => panic!("a path may go round for ever through {next:#?}"),
                None => {
                    known.insert(next.clone(), None);
                    path.push(visit(next));
                }
            }
        }
    }
    longest
}

/// Prints one line of a test's result, for `--nocapture`.
#[expect(clippy::print_stdout, reason = "the number of explored states is the result of these tests")]
pub(crate) fn report(line: &str) {
    println!("{line}");
}

/// Counts 0, 1, 2 and stops; or goes back from 2 to 1 for ever.
struct Counter {
    goes_round: bool,
}

impl Model for Counter {
    type State = u8;
    type Action = u8;

    fn init_states(&self) -> Vec<u8> {
        vec![0]
    }

    fn actions(&self, state: &u8, actions: &mut Vec<u8>) {
        if *state < 2 {
            actions.push(state + 1);
        } else if self.goes_round {
            actions.push(1);
        }
    }

    fn next_state(&self, _: &u8, action: u8) -> Option<u8> {
        Some(action)
    }
}

#[test]
fn the_longest_path_is_counted_in_steps() {
    assert_eq!(longest_path(&Counter { goes_round: false }, u8::clone), 2);
}

#[test]
#[should_panic(expected = "round for ever")]
fn a_path_that_goes_round_is_noticed() {
    longest_path(&Counter { goes_round: true }, u8::clone);
}
