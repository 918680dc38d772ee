//! Redrives or purges one letter of a run for its status page, with the code of the commands: [`LetterDesk`].

use std::io;
use std::path::Path;

use async_trait::async_trait;

use super::context::LettersContext;
use super::filter::Filter;
use super::purge::purge_selected;
use super::redrive::redrive_selected;
use crate::args::{FileArgs, LetterFilter, LetterPurgeArgs, LettersArgs, RedriveArgs};
use crate::commands::audit::Operator;
use crate::commands::failure;
use crate::config::{self, Config};
use crate::exit::Failure;
use crate::output::Output;
use crate::telemetry::{LetterActions, LetterOrder, LetterOutcome, LetterRequest};

/// The dead letters of a configuration. Each action opens store and letters of its own, as a command does.
pub(in crate::commands) struct LetterDesk {
    config: Config,
    args: FileArgs,
}

impl LetterDesk {
    pub(in crate::commands) fn new(config: &Config, file: &Path) -> Self {
        Self { config: config.clone(), args: FileArgs { file: file.to_owned() } }
    }

    async fn try_act(&self, order: &LetterOrder) -> Result<LetterOutcome, Failure> {
        let letters = LettersArgs { config: self.args.clone(), from: None, json: false };
        let filter = || LetterFilter { id: Some(order.id.clone()), limit: 1, ..LetterFilter::default() };
        let scope = config::scope(&self.config).map_err(|error| failure::failure(&error))?;
        let context = LettersContext::open(None, self.config.clone(), scope).await?;
        let (operator, why) = (Operator::of_the_status_page(order.by.as_deref()), Some(order.why.clone()));
        let mut out = Output::to(io::sink());
        match order.request {
            LetterRequest::Redrive => {
                let args = RedriveArgs {
                    letters,
                    filter: filter(),
                    unsealed: false,
                    payload_file: None,
                    rate: None,
                    dry_run: false,
                    why,
                    yes: true,
                };
                let selected = Filter::new(&args.filter)?;
                let counts = redrive_selected(context, &args, selected, None, operator, &mut out).await?;
                Ok(match counts.obstacle {
                    _ if counts.redriven > 0 => LetterOutcome::Redriven,
                    _ if counts.resolved > 0 => LetterOutcome::Resolved,
                    Some(why) => LetterOutcome::Left(why),
                    None => LetterOutcome::Absent,
                })
            }
            LetterRequest::Purge => {
                let args =
                    LetterPurgeArgs { letters, filter: filter(), rate: None, dry_run: false, why, yes: true };
                let selected = Filter::new(&args.filter)?;
                let counts = purge_selected(context, &args, selected, operator, &mut out).await?;
                Ok(if counts.purged > 0 { LetterOutcome::Purged } else { LetterOutcome::Absent })
            }
        }
    }
}

#[async_trait]
impl LetterActions for LetterDesk {
    async fn act(&self, order: &LetterOrder) -> LetterOutcome {
        let failed = |failure: Failure| failure.sentence().unwrap_or_default().to_owned();
        self.try_act(order).await.unwrap_or_else(|failure| LetterOutcome::Failed(failed(failure)))
    }
}
