#!/bin/sh
# Charges one order: it comes on standard input, and everything else about it in ONCEWARD_* variables.
# The "charge" is a line in state/effects.log, so that each effect can be counted. Exit code 0 says that it happened.
set -eu
IFS= read -r order || [ -n "$order" ]
printf '%s %s\n' "$ONCEWARD_KEY" "$order" >> state/effects.log
