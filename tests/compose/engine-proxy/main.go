// Stands in for the image of `engine-proxy` where no registry can be reached: it obeys the arguments that docker-compose.yml
// gives to wollomatic/socket-proxy 1.13, and refuses to start with any other. It is for tests/compose/ only.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"path"
	"regexp"
	"strings"
	"syscall"
	"time"
)

const (
	engineSocket = "/var/run/docker.sock"
	// More than the description of any container of a test.
	maxBodyBytes = 1 << 20
	stopWithin   = 5 * time.Second
)

// A container is created by a request to this path, with or without a version of the engine's interface before it.
var creates = regexp.MustCompile(`^(/v[0-9.]+)?/containers/create$`)

// gate holds what is let through: paths by method, and directories of the host that may be mounted.
type gate struct {
	paths  map[string]*regexp.Regexp
	mounts []string
}

// hostConfig is what the body of a `create` says of mounts.
type hostConfig struct {
	Binds       []string
	VolumesFrom []string
	Mounts      []mount
}

type mount struct {
	Type          string
	Source        string
	VolumeOptions *struct {
		DriverConfig *struct{ Options map[string]string }
	}
}

func main() {
	endpoint := flag.String("proxysocketendpoint", "", "the socket to make")
	mounts := flag.String("allowbindmountfrom", "", "what containers may mount of the host, with commas between")
	level := flag.String("loglevel", "info", "accepted, and without effect: what is refused is always logged")
	patterns := map[string]*string{}
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		patterns[method] = flag.String("allow"+method, "", "the paths of this method, as a regular expression")
	}
	flag.Parse()
	slog.Info("stand-in for wollomatic/socket-proxy", "loglevel", *level, "allowbindmountfrom", *mounts)
	if err := run(*endpoint, strings.Split(*mounts, ","), patterns); err != nil {
		slog.Error("cannot go on", "error", err)
		os.Exit(1)
	}
}

func run(endpoint string, mounts []string, patterns map[string]*string) error {
	if endpoint == "" || flag.NArg() > 0 {
		return fmt.Errorf("expected -proxysocketendpoint and flags only, got %q", os.Args[1:])
	}
	allowed := gate{paths: map[string]*regexp.Regexp{}}
	for method, pattern := range patterns {
		if *pattern == "" {
			continue
		}
		compiled, err := regexp.Compile("^(?:" + *pattern + ")$")
		if err != nil {
			return fmt.Errorf("-allow%s: %w", method, err)
		}
		allowed.paths[method] = compiled
	}
	for _, directory := range mounts {
		if !path.IsAbs(directory) {
			return fmt.Errorf("-allowbindmountfrom: %q: expected an absolute path", directory)
		}
		allowed.mounts = append(allowed.mounts, path.Clean(directory))
	}
	// What a proxy that was killed has left.
	if err := os.Remove(endpoint); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", endpoint)
	if err != nil {
		return err
	}
	if err := os.Chmod(endpoint, 0o600); err != nil {
		return err
	}
	return serve(listener, allowed)
}

func serve(listener net.Listener, allowed gate) error {
	engine := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "docker"})
	engine.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", engineSocket)
	}}
	server := &http.Server{ReadHeaderTimeout: stopWithin, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status, reason := allowed.refusal(r); status != 0 {
			slog.Warn("refused", "method", r.Method, "path", r.URL.Path, "reason", reason)
			http.Error(w, reason, status)
			return
		}
		engine.ServeHTTP(w, r)
	})}
	told, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-told.Done():
		within, cancel := context.WithTimeout(context.Background(), stopWithin)
		defer cancel()
		return server.Shutdown(within)
	}
}

// refusal says why a request is not passed on, or 0 when it is; a body that was read is put back.
func (g gate) refusal(r *http.Request) (int, string) {
	paths, known := g.paths[r.Method]
	if !known {
		return http.StatusMethodNotAllowed, "method not allowed"
	}
	if !paths.MatchString(r.URL.Path) {
		return http.StatusForbidden, "path not allowed"
	}
	if r.Method != http.MethodPost || !creates.MatchString(r.URL.Path) {
		return 0, ""
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBodyBytes))
	if err != nil {
		return http.StatusForbidden, "the body cannot be read: " + err.Error()
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	var asked struct{ HostConfig hostConfig }
	if err := json.Unmarshal(body, &asked); err != nil {
		return http.StatusForbidden, "the body is no JSON: " + err.Error()
	}
	if err := g.mountsOnly(asked.HostConfig); err != nil {
		return http.StatusForbidden, err.Error()
	}
	return 0, ""
}

func (g gate) mountsOnly(host hostConfig) error {
	if len(host.VolumesFrom) > 0 {
		return errors.New("volumes of other containers are not allowed")
	}
	var sources []string
	for _, bind := range host.Binds {
		source, _, _ := strings.Cut(bind, ":")
		sources = append(sources, source)
	}
	for _, each := range host.Mounts {
		if each.Type == "bind" {
			sources = append(sources, each.Source)
		}
		// A volume of the local driver can be a directory of the host as well.
		if options := each.VolumeOptions; options != nil && options.DriverConfig != nil {
			sources = append(sources, options.DriverConfig.Options["device"])
		}
	}
	for _, source := range sources {
		if !g.permits(source) {
			return fmt.Errorf("not to be mounted: %s", source)
		}
	}
	return nil
}

// permits tells whether a source may be mounted; what is no absolute path names a volume.
func (g gate) permits(source string) bool {
	if !path.IsAbs(source) {
		return true
	}
	source = path.Clean(source)
	for _, directory := range g.mounts {
		if source == directory || strings.HasPrefix(source, strings.TrimSuffix(directory, "/")+"/") {
			return true
		}
	}
	return false
}
