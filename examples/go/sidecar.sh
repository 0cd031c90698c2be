#!/bin/sh
# go build -o hello .
exec worker --subject svc.hello.blue --port-env PORT --health 'GET /health' -- ./hello
