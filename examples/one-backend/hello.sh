#!/bin/sh
# nats reply --queue q svc.hello.v1 --command "sh hello.sh"
# The name stays as JSON has it, so nothing in it is a command or an end of the text.
name=$(printf '%s' "$NATS_REQUEST_BODY" | sed -n 's/.*[{,]"name":\("\([^"\\]\|\\.\)*"\).*/\1/p')
if [ -n "$name" ]; then
    printf '{"hello":%s}' "$name"
else
    printf '{"_reply":{"status":400},"body":{"error":"who are you?"}}'
fi
