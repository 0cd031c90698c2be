#!/bin/sh
# npm install
exec worker --subject svc.express.blue --port-env PORT --health 'GET /health' -- node server.js
