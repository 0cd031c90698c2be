module natsway.example/hello

go 1.22
