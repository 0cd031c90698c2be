#!/bin/sh
# pip install -r requirements.txt
exec worker --subject svc.flask.blue --port-env PORT --health 'GET /health' -- \
    sh -c 'exec gunicorn --bind "127.0.0.1:$PORT" --worker-class gthread --workers 2 --threads 16 --keep-alive 5 app:app'
