package main

import (
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
)

// One member, on one address, without TLS: it listens where only the control plane's namespace reaches it.
func etcd() *cobra.Command {
	var directory, address string
	var port int
	program := &cobra.Command{
		Use:   "etcd",
		Short: "One etcd member for a cluster that is thrown away",
		RunE: func(*cobra.Command, []string) error {
			config := embed.NewConfig()
			config.Dir = directory
			config.LogLevel = "warn"
			config.UnsafeNoFsync = true // What is kept here is not worth waiting for a disk.
			client := url.URL{Scheme: "http", Host: fmt.Sprintf("%s:%d", address, port)}
			peer := url.URL{Scheme: "http", Host: fmt.Sprintf("%s:%d", address, port+1)}
			config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
			config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
			config.InitialCluster = config.InitialClusterFromName(config.Name)
			member, err := embed.StartEtcd(config)
			if err != nil {
				return err
			}
			defer member.Close()
			asked := make(chan os.Signal, 1)
			signal.Notify(asked, syscall.SIGTERM, syscall.SIGINT)
			select {
			case <-asked:
				return nil
			case err := <-member.Err():
				return err
			}
		},
	}
	program.Flags().StringVar(&directory, "data-dir", "", "where it keeps its data")
	program.Flags().StringVar(&address, "address", "127.0.0.1", "the address that it listens on")
	program.Flags().IntVar(&port, "port", 2379, "the clients' port; peers have the next one")
	return program
}
