#!/bin/sh
# An exec handler: one process per message, the payload on standard input.
#
#   [handler.exec]
#   command = ["./charge.sh"]
#   env = { CHARGES = "/var/lib/billing/charges.log" }
#
# It books an order, a line of JSON, in the file $CHARGES. Exit codes: 0 done, 65 never going to be done (dead letter),
# anything else: try again. The last line on standard error becomes the error's text.
set -u

ledger=${CHARGES:-charges.log}
order=$(cat)

case $order in
'{'*'}') ;;
*)
    echo "the order is no JSON object" >&2
    exit 65 # EX_DATAERR
    ;;
esac

if ! printf '%s\t%s\t%s\n' "${ONCEWARD_KEY:-none}" "$ONCEWARD_FENCE" "$order" >>"$ledger"; then
    echo "cannot write to $ledger" >&2
    exit 75 # EX_TEMPFAIL
fi
