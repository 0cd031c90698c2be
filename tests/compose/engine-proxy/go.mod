// What stands in for the socket proxy of docker-compose.yml where its image cannot be pulled; see main.go.
module natsway/tests/compose/engine-proxy

go 1.25.0
