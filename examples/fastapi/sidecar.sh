#!/bin/sh
# pip install -r requirements.txt
exec worker --subject svc.fastapi.blue --port-env PORT --health 'GET /health' -- \
    sh -c 'exec uvicorn app:app --host 127.0.0.1 --port "$PORT"'
