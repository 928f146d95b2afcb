/** The release of Cloud Hypervisor whose API and command line are spoken here. */
export const CH_VERSION = '38.0.0';
