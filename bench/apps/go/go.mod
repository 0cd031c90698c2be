// A small app for `bench apps`.
module natsway.test/bench-app

go 1.22
